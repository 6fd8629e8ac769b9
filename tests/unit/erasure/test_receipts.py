"""Erasures without a release: what is found, what is done, what is proved. (``integration/test_erasure.py`` has one.)"""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from tests import erasure_factories, factories
from tests.erasure_factories import KEY, SIGNER, copied, eraser, pseudonym, restored
from tests.galleries import published

from mrcg.corpus.ingestion import is_suppressed
from mrcg.corpus.reader import read_quarantine, read_scans
from mrcg.erasure.discovery import find_traces
from mrcg.erasure.people import AskedPatient, describe_similar
from mrcg.erasure.records import (
    RECEIPTS,
    RECORDS,
    ErasureTarget,
    check_receipt,
    plan_erasure,
    read_receipt,
    reappeared_versions,
)
from mrcg.errors import IntegrityError, NotFoundError, StoreError, UsageError
from mrcg.imaging.samples import SampleFormat, write_samples
from mrcg.privacy.pseudonyms import Pseudonyms
from mrcg.privacy.signing import Signer
from mrcg.privacy.suppression import FOLDER as SUPPRESSION
from mrcg.privacy.suppression import IMAGE, PATIENT, PIXELS, suppressed, token
from mrcg.privacy.tombstones import FOLDER as TOMBSTONES
from mrcg.privacy.tombstones import Tombstones, entry_of
from mrcg.storage import schemas
from mrcg.storage.attempts import begin
from mrcg.storage.store import Store

JANE, JOE, TWIN, NOBODY = "PH-glioma_tumor-0-1", "PH-no_tumor-2-1", "TWIN", "NOBODY"
JANES = ErasureTarget(kind=PATIENT, value=pseudonym(JANE))
CONFIG = erasure_factories.config_of_patients()
#: Made from a corpus, and so gone with it; models stay.
MADE = ("corpus", "embeddings", "graphs", "indexes", "reports", "splits")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """DICOM of 28 patients; one of Jane's scans also exists under another patient's name."""
    folder = tmp_path_factory.mktemp("patients") / "scans"
    write_samples(folder, 96, 1, SampleFormat.dicom)
    copied(folder / "glioma_tumor" / "P0000" / "S1" / "IM0002", folder / "no_tumor" / "twin", TWIN)
    return folder


@pytest.fixture(scope="module")
def first(source, tmp_path_factory):
    store = Store(str(tmp_path_factory.mktemp("first") / "store"))
    return store, erasure_factories.make_unreleased(store, source, CONFIG)


@pytest.fixture
def made(first, tmp_path):
    """A store with one version of each kind, and their names."""
    shutil.copytree(first[0].root, tmp_path / "made")
    return Store(str(tmp_path / "made")), first[1]


def jane(store):
    return erasure_factories.person_of(Path(store.root), "patient", pseudonym(JANE))


def found(store, person):
    return erasure_factories.found(Path(store.root), person)


def twins_left(person, hits):
    """What is found, but for what an identical scan of another patient has in common with one of hers."""
    return {kind: paths for kind, paths in hits.items() if kind not in ("pixels", "fp16", "fp32")}


def checked(store, signed, key=SIGNER.public_key):
    return check_receipt(store, signed, key, suppressed(store))


# What is found -----------------------------------------------------------------------------------------------------


def test_record_lists_hashes_of_everything_to_erase(made):
    store, versions = made
    person, record = jane(store), plan_erasure(store, JANES, KEY)
    ids = person.words["image_id"]
    assert set(record.images) == {entry_of(one) for one in ids}
    kinds = ("image_id", "patient", "bare_id", "study", "series", "instance")
    assert set(record.names) == {entry_of(word) for kind in kinds for word in person.words[kind]}
    assert len(record.vectors) == 3, "four, but one is an identical scan's of another patient, too"
    assert record.suppressed == (token(KEY, PATIENT, pseudonym(JANE)),)
    assert record.copies == 1
    assert record.doomed == tuple(sorted(f"{kind}/{versions[kind]}" for kind in MADE))
    text = record.model_dump_json()
    assert not [word for words in person.words.values() for word in words if word in text]


def test_who_is_in_no_corpus_is_an_error(made):
    store, _ = made
    with pytest.raises(NotFoundError, match="no corpus in .* has an image cafe: `mrcg query` shows ids"):
        plan_erasure(store, ErasureTarget(kind=IMAGE, value="cafe"), KEY)
    with pytest.raises(NotFoundError, match="no corpus in .* has scans of this patient: nothing was erased"):
        plan_erasure(store, ErasureTarget(kind=PATIENT, value=pseudonym(NOBODY)), KEY)
    assert (suppressed(store), describe_similar(store, AskedPatient(patient=NOBODY), KEY)) == (frozenset(), [])
    assert describe_similar(store, AskedPatient(patient=f"0{JANE}"), KEY) == [f"{JANE} (4 scans)"]


def test_accession_numbers_do_not_identify_scans(made):
    store, _ = made
    (number,) = jane(store).words["accession"]
    assert entry_of(number) not in plan_erasure(store, JANES, KEY).names


def test_name_shared_with_scans_of_another_corpus_is_not_erased(made):
    """The same study was also ingested without a patient id: it stays, and does not count as a trace of the patient."""
    store, versions = made
    (study,) = jane(store).words["study"]
    before = set(plan_erasure(store, JANES, KEY).names)
    rows = read_scans(store.artefact("corpus", versions["corpus"])).to_pylist()[-1:]
    rows[0] |= {"patient": None, "study": study}
    table = schemas.to_parquet(pa.Table.from_pylist(rows, schemas.SCANS))
    published(store, "corpus", {"listing": "other"}, {}, {"scans/00000.parquet": table}, generation=0)
    assert before - set(plan_erasure(store, JANES, KEY).names) == {entry_of(study)}


def test_record_of_an_image_has_all_copies_and_no_patient(made):
    store, versions = made
    rows = read_scans(store.artefact("corpus", versions["corpus"])).to_pylist()
    (twin,) = [row for row in rows if row["patient"] == pseudonym(TWIN)]
    (hers,) = [row for row in rows if row["pixel_hash"] == twin["pixel_hash"] and row is not twin]
    record = plan_erasure(store, ErasureTarget(kind=IMAGE, value=hers["image_id"]), KEY)
    both = {row[name] for row in (twin, hers) for name in ("image_id", "instance")}
    assert set(record.names) == {entry_of(word) for word in both}
    assert set(record.suppressed) == {
        token(KEY, IMAGE, hers["image_id"]), token(KEY, PIXELS, hers["pixel_hash"]),
    }  # fmt: skip
    assert (len(record.images), record.copies) == (2, 0)


@pytest.mark.parametrize(
    ("key", "which"), [(None, "a pseudonym key"), (Pseudonyms(bytes(32)), "another pseudonym key")]
)
def test_an_image_of_a_corpus_with_another_key_is_refused(made, key, which):
    """Its entry on the suppression list would not match in the next ingestion."""
    store, versions = made
    ident = read_scans(store.artefact("corpus", versions["corpus"]))["image_id"][0].as_py()
    with pytest.raises(UsageError, match=f"corpus/{versions['corpus']} was made with {which}: set MRCG_PSEUDONYM_KEY"):
        eraser(store, key).erase(ErasureTarget(kind=IMAGE, value=ident))
    assert not store.exists(TOMBSTONES)


def test_image_ingested_without_a_key_is_suppressed_without_one(store, scans):
    """The source is still ingested without a key, even if there is one by now."""
    config = factories.tiny_config()
    made = erasure_factories.make_unreleased(store, scans, config, None)
    row = read_scans(store.artefact("corpus", made["corpus"])).to_pylist()[4]
    person = erasure_factories.person_of(Path(store.root), "image_id", row["image_id"])
    signed = eraser(store, KEY).erase(ErasureTarget(kind=IMAGE, value=row["image_id"]))
    assert found(store, person) == {}
    assert checked(store, signed).holds
    for key in (None, KEY):
        assert is_suppressed({**row, "patient": None}, factories.rules_of(None, key, suppressed(store)))
    assert eraser(store, KEY).erase(ErasureTarget(kind=IMAGE, value=row["image_id"])) == signed


# What is done ------------------------------------------------------------------------------------------------------


def test_erased_patient_leaves_no_traces_and_others_stay(made):
    store, versions = made
    person = jane(store)
    assert set(found(store, person)) == {*erasure_factories.WORDS, "fp16", "fp32", "pixels"}
    receipt = eraser(store).erase(JANES).receipt
    left = found(store, person)
    assert twins_left(person, left) == {}
    (corpus,) = store.versions("corpus")
    assert receipt.made_versions == (f"corpus/{corpus}",)
    assert (receipt.scans, receipt.identical_copies_left, receipt.release) == (4, 1, None)
    patients = set(read_scans(store.artefact("corpus", corpus))["patient"].to_pylist())
    assert pseudonym(JANE) not in patients
    assert len(patients) == 24
    (twin,) = [
        row
        for row in erasure_factories.scans_of(store, corpus, "patient", "image_id", "cluster_id")
        if row[0] == pseudonym(TWIN)
    ]
    assert twin[1] == twin[2], "whose scan is the same stays, in a cluster with a name of its own"
    assert store.versions("encoders") == [versions["encoders"]], "models are not unlearned"


def test_image_is_erased_with_all_copies(made):
    store, versions = made
    rows = read_scans(store.artefact("corpus", versions["corpus"])).to_pylist()
    (twin,) = [row for row in rows if row["patient"] == pseudonym(TWIN)]
    person = erasure_factories.person_of(Path(store.root), "pixel_hash", twin["pixel_hash"])
    assert len(person.words["image_id"]) == 2
    receipt = eraser(store).erase(ErasureTarget(kind=IMAGE, value=twin["image_id"])).receipt
    assert (receipt.scans, receipt.identical_copies_left) == (2, 0)
    assert found(store, person) == {}
    (corpus,) = store.versions("corpus")
    left = read_scans(store.artefact("corpus", corpus))["patient"].to_pylist()
    assert left.count(pseudonym(JANE)) == 3


def test_repeated_erasure_returns_the_same_receipt(made):
    store, _ = made
    one = eraser(store).erase(JANES)
    files = {path: path.stat().st_mtime_ns for path in Path(store.root).rglob("*")}
    again = eraser(store, signer=Signer(bytes(32))).erase(JANES)
    assert again == one
    assert {path: path.stat().st_mtime_ns for path in Path(store.root).rglob("*")} == files
    assert read_receipt(store.read_bytes(f"{RECEIPTS}/{one.receipt.ident}.json")) == one


def test_corpus_without_the_patient_is_unchanged(made, tmp_path):
    store, _ = made
    write_samples(tmp_path / "other", 32, 7, SampleFormat.dicom)
    other = erasure_factories.make_unreleased(store, tmp_path / "other", CONFIG)
    removed = eraser(store).erase(JANES).receipt.removed_versions
    assert not {f"{kind}/{version}" for kind, version in other.items()} & set(removed)
    assert all(store.has(kind, version) for kind, version in other.items())


class StoppedError(Exception):
    """Stops an erasure in a test."""


@pytest.mark.parametrize("which", range(0, 35, 3))
def test_erasure_stopped_at_any_removal_is_resumed(made, monkeypatch, which):
    store, versions = made
    person, left = jane(store), [which]
    remove = Store.remove

    def stopping(self, relative):
        if relative.startswith("log/"):
            return remove(self, relative)
        left[0] -= 1
        if left[0] < 0:
            raise StoppedError
        return remove(self, relative)

    monkeypatch.setattr(Store, "remove", stopping)
    with pytest.raises(StoppedError):
        eraser(store).erase(JANES)
    monkeypatch.setattr(Store, "remove", remove)
    assert not store.listdir(RECEIPTS)
    signed = eraser(store).erase(JANES)
    assert twins_left(person, found(store, person)) == {}
    assert set(signed.receipt.removed_versions) == {f"{kind}/{versions[kind]}" for kind in MADE}
    assert checked(store, signed).holds


def test_versions_in_use_by_a_job_are_hidden_and_not_removed(made):
    store, versions = made
    inputs = {"corpus": versions["corpus"], "encoders": versions["encoders"]}
    with begin(store, "embeddings", "0" * 12, inputs):
        with pytest.raises(
            StoreError, match=f"a running job uses corpus/{versions['corpus']}, which must be deleted: wait for it"
        ):
            eraser(store).erase(JANES)
        assert store.has("corpus", versions["corpus"])
        stones = Tombstones(store)
        stones.refresh()
        assert len(stones.entries) == 4
        assert suppressed(store) == {token(KEY, PATIENT, pseudonym(JANE))}
    shutil.rmtree(Path(store.root) / "embeddings" / "_attempts")
    assert checked(store, eraser(store).erase(JANES)).holds


def test_files_of_a_killed_job_are_removed(made):
    store, versions = made
    person = jane(store)
    artefact = store.artefact("embeddings", versions["embeddings"])
    with pytest.raises(StoppedError), begin(store, "embeddings", "0" * 12) as attempt:
        attempt.write("embeddings/part.arrow", artefact.read_bytes(artefact.names()[0]))
        raise StoppedError
    assert [path for path in found(store, person)["image_id"] if "_attempts" in path]
    eraser(store).erase(JANES)
    assert store.listdir("embeddings/_attempts") == []


# Who left before ---------------------------------------------------------------------------------------------------


def keys_of(store, versions, patient):
    rows = erasure_factories.scans_of(store, versions["corpus"], "patient", "source_key")
    return {key for one, key in rows if one == pseudonym(patient)}


@pytest.mark.parametrize("swept", [False, True])
def test_patient_who_left_the_source_earlier_leaves_no_traces(made, swept):
    """Pixels and vectors are still in files that were not rewritten; without the old corpus no table names them."""
    store, versions = made
    person = erasure_factories.person_of(Path(store.root), "patient", pseudonym(JOE))
    later = erasure_factories.grown(store, versions, CONFIG, keys_of(store, versions, JOE))
    if swept:
        erasure_factories.swept(store, versions, later)
    hits = found(store, person)
    assert {"pixels", "fp16", "fp32"} <= set(hits)
    assert [path for path in hits["fp16"] if path.endswith(".f16")]
    assert ("patient" in hits) is not swept
    signed = eraser(store).erase(ErasureTarget(kind=PATIENT, value=pseudonym(JOE)))
    assert signed.receipt.scans == (0 if swept else 4)
    assert found(store, person) == {}
    assert checked(store, signed).holds


# What is proved ----------------------------------------------------------------------------------------------------


@pytest.fixture
def erased(made, tmp_path):
    """A store, a copy of it from before, and the receipt."""
    store, _ = made
    shutil.copytree(store.root, tmp_path / "backup")
    return store, tmp_path / "backup", eraser(store).erase(JANES)


def test_receipt_is_valid_and_names_its_signer(erased):
    store, _, signed = erased
    assert checked(store, signed).holds
    unasked = checked(store, signed, None)
    assert (unasked.holds, unasked.known_signer) == (True, None)
    other = checked(store, signed, Signer(bytes(32)).public_key)
    assert (other.holds, other.genuine, other.known_signer) == (False, True, False)


def test_changed_receipt_is_detected(erased):
    store, _, signed = erased
    other = {str: "other", int: 7, tuple: ("other",), type(None): 7}
    for name in type(signed.receipt).model_fields:
        changed = signed.receipt.model_copy(update={name: other[type(getattr(signed.receipt, name))]})
        verdict = checked(store, signed.model_copy(update={"receipt": changed}))
        assert (verdict.genuine, verdict.holds) == (False, False), name


def test_only_receipt_files_are_read_as_receipts(erased):
    _, _, signed = erased
    data = signed.model_dump_json(indent=1).encode()
    assert read_receipt(data) == signed
    tree = json.loads(data)
    for wrong in (b"", b"{}", b"\xff", data[:-3], json.dumps({**tree, "more": 1}).encode()):
        with pytest.raises(IntegrityError, match="this is not a receipt of `mrcg erase`: give the file that it wrote"):
            read_receipt(wrong)


def test_missing_suppression_entry_is_detected(erased):
    store, _, signed = erased
    store.remove(SUPPRESSION)
    verdict = checked(store, signed)
    assert (verdict.holds, verdict.not_suppressed, verdict.left) == (False, True, ())


PARTS = {"a whole corpus": "corpus", "an index": "indexes", "embeddings": "embeddings", "splits": "splits"}


@pytest.mark.parametrize("kind", PARTS.values(), ids=PARTS)
def test_restored_version_is_detected_and_erased_again(erased, kind):
    store, backup, signed = erased
    person = erasure_factories.person_of(backup, "patient", pseudonym(JANE))
    version = next(path.name for path in (backup / kind).iterdir() if not path.name.startswith("_"))
    restored(store, backup, f"{kind}/{version}")
    verdict = checked(store, signed)
    assert not verdict.holds
    assert verdict.versions_back == (f"{kind}/{version}",)
    assert verdict.left
    again = eraser(store).erase(JANES)
    assert again.receipt.ident != signed.receipt.ident
    assert twins_left(person, found(store, person)) == {}
    assert checked(store, signed).holds
    assert checked(store, again).holds
    assert eraser(store).erase(JANES).receipt.ident in (signed.receipt.ident, again.receipt.ident)


def test_restored_file_is_detected_and_erased_again(erased):
    store, backup, signed = erased
    path = next((backup / "indexes").rglob("*.faiss"))
    restored(store, backup, str(path.relative_to(backup)))
    verdict = checked(store, signed)
    assert not verdict.holds
    assert verdict.versions_back == (f"indexes/{path.relative_to(backup).parts[1]}",)
    eraser(store).erase(JANES)
    assert reappeared_versions(store, signed.receipt.removed_versions) == []
    assert not (Path(store.root) / path.relative_to(backup)).exists()


def test_scans_from_a_job_started_before_the_erasure_are_detected_and_erased(erased, tmp_path, source):
    """The job read the suppression list before the erasure, and publishes scans that the erasure has not seen."""
    store, _, signed = erased
    (tmp_path / "late" / "no_tumor").mkdir(parents=True)
    write_samples(tmp_path / "late", 16, 8, SampleFormat.dicom)
    copied(tmp_path / "late" / "no_tumor" / "P0000" / "S1" / "IM0001", tmp_path / "late" / "no_tumor" / "hers", JANE)
    erasure_factories.make_unreleased(store, tmp_path / "late", CONFIG)
    person = jane(store)
    assert len(person.words["image_id"]) == 1
    verdict = checked(store, signed)
    assert (verdict.holds, verdict.versions_back) == (False, ())
    again = eraser(store).erase(JANES)
    assert again.receipt.scans == 5
    assert twins_left(person, found(store, person)) == {}
    assert checked(store, signed).holds
    assert checked(store, again).holds


def test_remaining_trace_is_reported_and_no_receipt_is_signed(made, monkeypatch):
    store, _ = made
    monkeypatch.setattr("mrcg_jobs.erasure.remove_versions", lambda *_: None)
    with pytest.raises(IntegrityError, match="erased data is still in .* more files: run the same command again"):
        eraser(store).erase(JANES)
    monkeypatch.undo()
    assert not store.listdir(RECEIPTS)
    assert len(store.listdir(RECORDS)) == 1
    record = plan_erasure(store, JANES, KEY)
    assert find_traces(store, record.names, record.vectors)
    assert checked(store, eraser(store).erase(JANES)).holds
    assert read_quarantine(store.artefact("corpus", store.versions("corpus")[0])).num_rows == 0
