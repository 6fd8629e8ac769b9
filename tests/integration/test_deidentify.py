"""Nothing that names a person gets into a store: planted identifiers are looked for in every decoded value."""

import base64
import datetime
import io
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pydicom
import pytest
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from tests import factories

from mrcg.corpus.reader import Corpus
from mrcg.corpus.report import newest_corpus
from mrcg.imaging.samples import SampleFormat, write_samples
from mrcg.privacy.pseudonyms import ENVIRONMENT, new_key
from mrcg.storage import schemas
from mrcg.storage.store import Store

# Planted values break the rules of their elements here and there, as those of real files do.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

#: What each kind of value is planted with; {n} tells the elements apart.
TEXTS = {
    "AE": "ZQAE{n}", "AS": "0{y:02d}Y", "CS": "ZQCS{n}", "DA": "19{y:02d}0713", "DS": "7{n}.31415", "DT": "19{y:02d}0713112233",
    "IS": "77{n:06d}3141", "LO": "ZqLongName{n}", "LT": "ZqText{n}", "PN": "ZqFamily{n}^Given", "SH": "ZqShort{n}", "ST": "ZqStreet{n}",
    "TM": "1122{y:02d}", "UC": "ZqUnlimited{n}", "UI": "1.2.826.0.1.777.{n}.31415", "UR": "http://zq{n}", "UT": "ZqLongText{n}",
}  # fmt: skip
#: Elements that say how the pixels lie: with others a file is no image any more.
KEPT_GROUPS = {0x0000, 0x0002, 0x0004, 0x0028, 0x7FE0}
KEPT = {
    "SOPClassUID",
    "Modality",
    "BurnedInAnnotation",
    "ConversionType",
    "SpecificCharacterSet",
    "PatientID",
    "StudyDate",
    "StudyInstanceUID",
    "SeriesInstanceUID",
}
#: Too short to mean anything where they are found by chance.
UNTELLING = ("AS", "TM")


def plant(dataset: Dataset, tag: int, vr: str, n: int) -> str | None:
    value = TEXTS[vr].format(n=n, y=n % 60)
    try:
        dataset.add_new(tag, vr, value)
    except (ValueError, TypeError):
        return None
    return None if vr in UNTELLING else value


def planted_file(path: Path) -> set[str]:
    """Plant identifiers in every text, person, date and UID element, in private ones and in sequences."""
    dataset = pydicom.dcmread(path)
    planted = set()
    for n, tag in enumerate(sorted(DicomDictionary)):
        vr = DicomDictionary[tag][0].split(" or ")[0]
        if (
            vr in TEXTS
            and tag >> 16 not in KEPT_GROUPS
            and keyword_for_tag(tag) not in KEPT
            and "Retired" not in DicomDictionary[tag][3]
        ):
            planted.add(plant(dataset, tag, vr, n))
    dataset.PatientID, dataset.StudyInstanceUID = "ZQPATIENT4711", "1.2.826.0.1.4711.31415"
    dataset.SeriesInstanceUID, dataset.StudyDate = generate_uid(entropy_srcs=["x"]), "19830713"
    planted |= {"ZQPATIENT4711", "1.2.826.0.1.4711.31415", str(dataset.SeriesInstanceUID), "19830713"}
    block = dataset.private_block(0x0029, "ZqPrivateCreator", create=True)
    block.add_new(0x01, "LO", "ZqPrivateName")
    block.add_new(0x02, "UN", b"ZqPrivateBytes")
    item, inner = Dataset(), Dataset()
    item.PatientName, item.PersonName = "ZqInSequence^One", "ZqInSequence^Two"
    inner.PatientName = "ZqDeep^Three"
    item.RequestAttributesSequence = [inner]
    dataset.RequestAttributesSequence = [item]
    dataset.file_meta.SourceApplicationEntityTitle = "ZQMETAAE"
    dataset.preamble = b"ZqPreambleName".ljust(128, b"\0")
    planted |= {
        "ZqPrivateCreator",
        "ZqPrivateName",
        "ZqPrivateBytes",
        "ZqInSequence",
        "ZqDeep",
        "ZQMETAAE",
        "ZqPreambleName",
    }
    dataset.save_as(path, enforce_file_format=True)
    return {one for one in planted if one}


def found_in(folder: Path, words: set[str]) -> set[str]:
    """The words that are in any name, any byte, or any decoded value of the files of a folder."""
    texts = [b"\n".join(str(path.relative_to(folder)).encode() for path in folder.rglob("*"))]
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            texts += [data, *decoded(path.name, data)]
    haystack = b"\n".join(texts)
    return {word for word in words if any(form in haystack for form in forms(word))}


def forms(word: str) -> list[bytes]:
    """A word as bytes in every encoding that is looked for; base64 at each of its three offsets."""
    plain = word.encode()
    shifted = [base64.b64encode(b"\0" * n + plain)[(n * 8 + 5) // 6 : -4] for n in range(3)]
    return [plain, word.encode("utf-16-le"), word.encode("utf-16-be"), word.encode("latin-1"), *shifted]


def decoded(name: str, data: bytes) -> list[bytes]:
    """Every value of a Parquet, Arrow, JSON or NumPy file, so that compression hides nothing."""
    if name.endswith(".parquet"):
        return values(schemas.from_parquet(data))
    if name.endswith(".arrow"):
        return values(schemas.from_ipc(data))
    if name.endswith(".json"):
        return [json.dumps(json.loads(data), ensure_ascii=False).encode()]
    if name.endswith(".npy"):
        return [np.load(io.BytesIO(data)).tobytes()]
    return []


def values(table: pa.Table) -> list[bytes]:
    found = [str(table.schema).encode()]
    for column in table.columns:
        for value in column.to_pylist():
            found.append(value if isinstance(value, bytes) else dates(value))
    return found


def dates(value: object) -> bytes:
    return f"{value:%Y%m%d} {value}".encode() if isinstance(value, datetime.date) else str(value).encode()


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """DICOM files with planted identifiers, also in the names of files and folders, damaged ones among them."""
    source = tmp_path_factory.mktemp("planted")
    write_samples(source / "ZqFolderName" / "glioma_tumor", 8, 1, SampleFormat.dicom)
    words = {"ZqFolderName", "ZqFileName", "ZqDamaged"}
    for n, path in enumerate(sorted(path for path in source.rglob("IM*"))):
        words |= planted_file(path)
        path.rename(path.with_name(f"ZqFileName-{n}"))
    (one, two, *_) = sorted(source.rglob("ZqFileName*"))
    (source / "ZqDamaged.dcm").write_bytes(one.read_bytes()[:-1500])
    (source / "ZqDamagedToo").write_bytes(two.read_bytes()[:900])
    return source, words


def write_control(folder: Path, source: Path) -> None:
    """A store written without de-identification: every header value and path, in the formats that a store has."""
    rows = []
    for path in sorted(source.rglob("*")):
        if not path.is_file():
            continue
        texts = [str(path)]
        dataset = pydicom.dcmread(path, force=True)
        for element in [*dataset.iterall(), *getattr(dataset, "file_meta", [])]:
            if element.VR not in ("SQ", "OW", "OB"):
                value = element.value
                texts.append(value.decode("latin-1") if isinstance(value, bytes) else str(value))
        texts.append((dataset.preamble or b"").decode("latin-1"))
        rows += [{"text": text} for text in texts]
    table = pa.Table.from_pylist(rows)
    folder.mkdir()
    (folder / "scans.parquet").write_bytes(schemas.to_parquet(table.slice(0, len(rows) // 3)))
    (folder / "scans.arrow").write_bytes(schemas.to_ipc(table.slice(len(rows) // 3, len(rows) // 3)))
    (folder / "manifest.json").write_text(json.dumps(table.slice(2 * (len(rows) // 3)).to_pylist()))


def test_no_planted_identifier_is_anywhere_in_the_store_or_the_logs(planted, tmp_path, monkeypatch, request):
    source, words = planted
    assert len(words) > 1500
    write_control(tmp_path / "control", source)
    assert found_in(tmp_path / "control", words) == words, "the search itself must find all of them"

    monkeypatch.setenv(ENVIRONMENT, new_key())
    # Ray's sockets need a short path.
    short = Path(tempfile.mkdtemp(prefix="mrcg-"))
    request.addfinalizer(lambda: shutil.rmtree(short, ignore_errors=True))
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    store = Store(str(tmp_path / "store"))
    words_of_command = ("ingest", "--source", str(source), "--store", store.url, "--max-bad-fraction", "0.5", "--debug")
    # A job that gives up leaves its attempt behind: that tells nothing either.
    failed = factories.mrcg("ingest", "--source", str(source), "--store", store.url)
    assert "2 of 10 files are bad" in failed.stderr
    assert list(Path(store.root).rglob("work-aes256gcm/listing.parquet"))
    assert found_in(Path(store.root), words) == set()
    done = factories.mrcg(*words_of_command)
    assert done.returncode == 0, done.stderr
    manifest = newest_corpus(store)
    assert (manifest.counts.images, manifest.counts.quarantined) == (8, 2)
    assert manifest.settings["policy"]["version"] >= 1
    assert manifest.counts.patients == 1
    assert found_in(Path(store.root), words) == set()
    logs = tmp_path / "logs"
    logs.mkdir()
    # The command line itself names the source's folder to whoever typed it; the files in it are what counts.
    (logs / "out").write_text((done.stdout + done.stderr).replace(str(source), ""))
    for path in short.rglob("*"):
        if path.is_file() and path.stat().st_size < 50_000_000:
            (logs / f"{len(list(logs.iterdir()))}").write_bytes(path.read_bytes())
    assert len(list(logs.iterdir())) > 10, "Ray's logs were looked at"
    assert found_in(logs, words) == set()

    corpus = Corpus(store.artefact("corpus", manifest.version))
    assert corpus.scans["year"].to_pylist() != [None] * 8
    assert corpus.labels == [None] * 8, "folder names are no labels where they may be names"
