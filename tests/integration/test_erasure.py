"""A patient is erased from a store that is served: nobody finds them from the tombstone on, nothing of them stays.

One ``mrcg run``, one ``mrcg serve`` and one ``mrcg erase`` for all of it; what is done to the store afterwards is done
to copies. What is looked for is in ``tests/erasure_factories.py``, a scanner that shares nothing with the one that is tested.
"""

import contextlib
import json
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from tests import erasure_factories, factories
from tests.erasure_factories import Person, endings_of, found, hits_of, kinds_of, person_of, serving
from tests.unit.cli.test_main import run

from mrcg.api.requests import SearchParams
from mrcg.corpus.reader import read_scans
from mrcg.erasure.records import ErasureTarget, plan_erasure
from mrcg.errors import NotFoundError
from mrcg.privacy.pseudonyms import Pseudonyms
from mrcg.privacy.suppression import PATIENT
from mrcg.releases.release import read_release
from mrcg.retrieval.local import LocalPipeline
from mrcg.storage.attempts import begin
from mrcg.storage.schemas import from_parquet
from mrcg.storage.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

#: Tiny, but with an index that is trained and a report that draws many scans.
OVERRIDES = (
    *factories.OVERRIDES, *erasure_factories.PATIENTS, "evaluate.picture_queries=32", "evaluate.bootstrap=100", "evaluate.map_images=20",
)  # fmt: skip
SETTINGS = ("--recipe", "demo", *(word for one in OVERRIDES for word in ("--set", one)))
SECONDS = 1.0
MODELS = {"encoders", "rerankers"}


@dataclass
class Ground:
    """A source of patients and a store that was made of it; three of the patients, by the ids that the source has.

    ``trained`` and ``other`` are of the training part, ``tested`` is of the test part.
    """

    source: Path
    store: Store
    key: Pseudonyms
    trained: str
    other: str
    tested: str

    def pseudonym(self, raw: str) -> str:
        return erasure_factories.pseudonym(raw, self.key)

    def person(self, raw: str, store: Path | None = None) -> Person:
        return person_of(store or Path(self.store.root), "patient", self.pseudonym(raw))

    def scans(self, raw: str) -> list[Path]:
        """Files of a patient."""
        label, number, _ = raw.removeprefix("PH-").rsplit("-", 2)
        return sorted((self.source / label / f"P{int(number):04d}").rglob("IM*"))


@pytest.fixture(scope="module", autouse=True)
def keys(tmp_path_factory):
    """The keys of a hospital: whatever is started here has them."""
    folder = tmp_path_factory.mktemp("keys")
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("pseudonym", "signing"):
            done = factories.mrcg("keys", "new", "--kind", kind, "--out", str(folder / kind))
            assert done.returncode == 0, done.stderr
            patch.setenv(f"MRCG_{kind.upper()}_KEY", str(folder / kind))
        yield folder


@pytest.fixture(scope="module")
def ground(keys, cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ground")
    source, store = folder / "scans", Store(str(folder / "store"))
    erasure_factories.write_patients(source, 128)
    words = ("--source", str(source), "--store", store.url, "--ray", cluster, *SETTINGS, "--json")
    done = factories.mrcg("run", *words, timeout=500)
    assert done.returncode == 0, done.stderr
    key = Pseudonyms(bytes.fromhex((keys / "pseudonym").read_text().strip()))
    # A job that was killed half way: what it had copied is nobody's version, and yet somebody's vectors.
    artefact = store.artefact("embeddings", store.versions("embeddings")[0])
    with contextlib.suppress(KeyboardInterrupt), begin(store, "embeddings", "0" * 12) as attempt:
        for name in artefact.names():
            attempt.write(name, artefact.read_bytes(name))
        raise KeyboardInterrupt
    raw = {
        erasure_factories.pseudonym(one, key): one
        for label in erasure_factories.CLASSES
        for one in (f"PH-{label}-{n}-1" for n in range(10))
    }
    splits = from_parquet(store.artefact("splits", store.versions("splits")[0]).read_bytes("splits.parquet"))
    part_of = dict(zip(splits["image_id"].to_pylist(), splits["split"].to_pylist(), strict=True))
    scans = erasure_factories.scans_of(store, read_release(store).corpus, "image_id", "patient")
    patients = {raw[one]: part_of[ident] for ident, one in scans}
    trained, tested = (sorted(one for one in patients if patients[one] == part) for part in ("train", "test"))
    # Keys are new each time, and so is whom the report happens to draw: somebody whom it drew comes first.
    trained.sort(key=lambda one: not erasure_factories.is_drawn(Path(store.root), one, key))
    return Ground(source, store, key, trained[0], trained[-1], tested[0])


@dataclass
class Story:
    """What happened while a patient was erased."""

    before: Path
    person: Person
    control: dict[str, set[str]]
    receipt: Path
    stdout: str = ""
    asked: list[tuple[float, bool]] = field(default_factory=list)  # when, and whether one of them was found
    tombstone: float = 0.0
    ended: float = 0.0
    preview_before: int = 0
    preview_while: int = 0
    preview_of_others: int = 0
    found_after: set[str] = field(default_factory=set)


@pytest.fixture(scope="module")
def story(ground, cluster, tmp_path_factory):
    folder, store = tmp_path_factory.mktemp("story"), ground.store
    shutil.copytree(store.root, folder / "before")
    person = ground.person(ground.trained)
    told = Story(folder / "before", person, found(Path(store.root), person), folder / "receipt.json")
    scan, theirs = ground.scans(ground.trained)[0], person.words["image_id"]
    with serving(store) as client:
        told.asked.append((time.time(), theirs <= set(hits_of(client, scan))))
        preview = f"/v1/images/{min(theirs)}/preview"
        told.preview_before = client.get(preview).status_code
        words = [factories.MRCG, "erase", "--store", store.url, "--patient", ground.trained, "--ray", cluster]
        words += ["--out", str(told.receipt)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            while process.poll() is None:
                asked = time.time()
                told.asked.append((asked, bool(theirs & set(hits_of(client, scan)))))
                if not told.tombstone and (stones := list(Path(store.root).glob("log/tombstones/*.json"))):
                    told.tombstone = stones[0].stat().st_mtime
                if told.tombstone and not told.preview_while and asked > told.tombstone + SECONDS:
                    told.preview_while = client.get(preview).status_code
                time.sleep(0.05)
            told.ended = time.time()
            told.stdout, err = process.communicate()
        assert process.returncode == 0, err
        other = min(ground.person(ground.other).words["image_id"])
        told.preview_of_others = client.get(f"/v1/images/{other}/preview").status_code
        for path in ground.scans(ground.trained) + ground.scans(ground.tested):
            told.found_after |= set(hits_of(client, path))
    return told


@pytest.fixture
def after(ground, story, tmp_path):
    """A copy of the store as the erasure left it."""
    shutil.copytree(ground.store.root, tmp_path / "after")
    return Store(str(tmp_path / "after"))


# Before ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "where", "endings"),
    [
        ("image_id", {"corpus", "embeddings", "indexes", "splits"}, {"parquet", "arrow"}),
        ("group_id", {"corpus", "indexes"}, {"parquet", "arrow"}),
        ("cluster_id", {"corpus"}, {"parquet"}),
        ("patient", {"corpus", "indexes"}, {"parquet", "arrow"}),
        ("study", {"corpus"}, {"parquet"}),
        ("series", {"corpus"}, {"parquet"}),
        ("instance", {"corpus"}, {"parquet"}),
        ("accession", {"corpus"}, {"parquet"}),
        ("fp16", {"embeddings", "indexes"}, {"arrow", "f16"}),
        ("fp32", {"indexes"}, {"faiss"}),
        ("pixels", {"corpus"}, {"parquet"}),
        ("picture", {"reports"}, {"png", "html"}),
    ],
)
def test_the_scanner_finds_them_before(story, kind, where, endings):
    """Else that it finds nothing afterwards would mean nothing."""
    assert where <= kinds_of(story.control[kind])
    assert endings <= endings_of(story.control[kind])


def test_the_scanner_finds_what_a_killed_job_left(story):
    assert [path for path in story.control["fp16"] if "/_attempts/" in path]
    assert [path for path in story.control["image_id"] if "/_attempts/" in path]


def test_the_scanner_finds_the_id_that_the_source_has_where_it_is(ground, story):
    named = Person({"raw": frozenset({ground.trained})}, (), ())
    assert len(found(ground.source, named)["raw"]) == 4
    assert found(story.before, named) == {}, "it never came into the store"


# While -------------------------------------------------------------------------------------------------------------


def test_the_service_finds_nobody_of_them_a_second_after_the_tombstone(story):
    assert story.asked[0][1], "they were found when the command began"
    last = max(when for when, there in story.asked if there)
    assert last <= story.tombstone + SECONDS
    assert story.tombstone < story.ended
    assert len([when for when, there in story.asked if when > story.tombstone + SECONDS]) > 3
    assert not [when for when, there in story.asked if there and when > story.tombstone + SECONDS]


def test_the_service_shows_no_picture_of_them_while_the_erasure_goes_on(story):
    assert (story.preview_before, story.preview_while) == (200, 404)


def test_the_service_goes_on_to_find_all_others(ground, story):
    assert not story.found_after & story.person.words["image_id"]
    assert ground.person(ground.tested).words["image_id"] <= story.found_after
    assert story.preview_of_others in (200, 404), "the pixels lie elsewhere now: that is no fault of the service"


# After -------------------------------------------------------------------------------------------------------------


def test_nothing_of_them_is_in_any_file(ground, story):
    assert found(Path(ground.store.root), story.person) == {}
    assert "4 scans erased, 6 versions removed, release 2 is current" in story.stdout
    assert found(Path(ground.store.root), Person({"raw": frozenset({ground.trained})}, (), ())) == {}
    for text in (story.receipt.read_text(), story.stdout.replace(ground.store.url, "")):
        assert not [word for words in story.person.words.values() for word in words if word in text]
        assert ground.trained not in text


def test_all_others_are_there_and_are_found(ground, story):
    store = ground.store
    old, new = (
        dict(erasure_factories.scans_of(one, read_release(one).corpus, "image_id", "patient"))
        for one in (Store(str(story.before)), store)
    )
    gone = story.person.words["image_id"]
    assert new == {ident: patient for ident, patient in old.items() if ident not in gone}
    pipeline = LocalPipeline.open(store)
    assert pipeline.release.number == 2
    for raw in (ground.tested, ground.other):
        theirs = ground.person(raw).words["image_id"]
        assert len(theirs) == 4
        for path in ground.scans(raw):
            answer = pipeline.search(path.read_bytes(), SearchParams(k=20, rerank=False))
            assert answer.hits[0].distance < 1e-3
            assert answer.hits[0].image_id in theirs
    for path in ground.scans(ground.trained):
        assert not {hit.image_id for hit in pipeline.search(path.read_bytes(), SearchParams(k=20)).hits} & gone


def test_the_models_stay_and_the_new_release_is_measured_with_them(ground, story):
    old, new = read_release(Store(str(story.before))), read_release(ground.store)
    assert (new.encoder, new.reranker) == (old.encoder, old.reranker)
    assert not {(kind, version) for kind, version in old.pins.items() if kind not in MODELS} & set(new.pins.items())
    report = json.loads(ground.store.artefact("reports", new.report).read_bytes("report.json"))
    assert (
        report["queries"]
        == json.loads(Store(str(story.before)).artefact("reports", old.report).read_bytes("report.json"))["queries"]
    )


def test_the_old_release_cannot_come_back_and_the_store_says_so(capsys, after):
    code, _, err = run(capsys, "releases", "rollback", 1, "--store", after.url)
    assert code == 1
    err = err.replace("\n", " ")
    assert "release 1 cannot serve again: corpus/" in err
    assert "is missing (removed by `mrcg gc` or by an erasure); `mrcg releases list` shows other releases" in err
    assert "missing" in run(capsys, "releases", "list", "--store", after.url)[1]
    listed = json.loads(run(capsys, "releases", "list", "--store", after.url, "--json")[1])
    assert [bool(one["missing"]) for one in listed] == [True, False]
    code, out, _ = run(capsys, "verify", "--store", after.url)
    assert (code, "release 1 cannot be rolled back to: corpus/" in out.replace("\n", " ")) == (0, True)


# Again -------------------------------------------------------------------------------------------------------------


def test_the_same_source_does_not_bring_them_back(capsys, ground, after, story):
    """Their files are read again, for nobody remembers which they were, and are refused again."""
    code, out, err = run(capsys, "ingest", "--source", ground.source, "--store", after.url, *SETTINGS, "--json")
    assert code == 0, err
    assert not json.loads(out)["stages"][0]["ran"], "the corpus without them is the corpus of this source"
    assert found(Path(after.root), story.person) == {}


def test_a_new_patient_comes_in_and_they_stay_out(capsys, ground, cluster, after, story, tmp_path):
    # Copied without their times all files seem new.
    shutil.copytree(ground.source, tmp_path / "scans", copy_function=shutil.copyfile)
    erasure_factories.write_patients(tmp_path / "new", 4, seed=9)
    shutil.copytree(tmp_path / "new" / "no_tumor", tmp_path / "scans" / "no_tumor" / "new")
    words = (
        "reindex",
        "--source",
        str(tmp_path / "scans"),
        "--store",
        after.url,
        "--ray",
        cluster,
        "--promote",
        "always",
    )
    done = factories.mrcg(*words, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    counts = {stage["stage"]: stage["counts"] for stage in result["stages"]}
    assert counts["ingest"]["reasons"] == {"suppressed": 4}
    assert (counts["ingest"]["images"], counts["ingest"]["patients"]) == (125, 32)
    assert result["promotion"]["release"]["number"] == 3
    assert found(Path(after.root), story.person) == {}
    new = LocalPipeline.open(after).search(
        next((tmp_path / "new" / "no_tumor").rglob("IM*")).read_bytes(), SearchParams(k=5, rerank=False)
    )
    assert new.hits[0].distance < 1e-3
    code, out, _ = run(capsys, "erase", "--verify", story.receipt, "--store", after.url)
    assert code == 0
    assert "genuine, signed with your key; 4 scans erased, no trace left in" in out.replace("\n", " ")


def test_the_same_erasure_again_gives_the_same_receipt(capsys, ground, after, story):
    code, out, _ = run(capsys, "erase", "--patient", ground.trained, "--store", after.url, "--here", "--json")
    assert (code, json.loads(out)) == (0, json.loads(story.receipt.read_text()))


# The receipt -------------------------------------------------------------------------------------------------------


def refusal(capsys, receipt, store):
    code, _, err = run(capsys, "erase", "--verify", receipt, "--store", store.url)
    assert code == 1
    return " ".join(err.split())


def test_the_receipt_holds(capsys, ground, story):
    code, out, _ = run(capsys, "erase", "--verify", story.receipt, "--store", ground.store.url, "--json")
    assert (code, json.loads(out)) == (
        0,
        {
            "genuine": True,
            "known_signer": True,
            "left": [],
            "versions_back": [],
            "not_suppressed": False,
            "holds": True,
        },
    )


@pytest.mark.parametrize(
    ("old", "new"), [('"scans": 4', '"scans": 5'), ('"release": 2', '"release": 3'), ('"encoders/', '"encoderz/')]
)
def test_a_receipt_that_was_changed_is_refused(capsys, ground, story, tmp_path, old, new):
    text = story.receipt.read_text()
    assert old in text
    (tmp_path / "changed").write_text(text.replace(old, new))
    assert "changed: its content does not match its signature: run `mrcg erase` again" in refusal(
        capsys, tmp_path / "changed", ground.store
    )


def test_a_receipt_of_another_key_is_refused(capsys, ground, story, monkeypatch):
    monkeypatch.setenv("MRCG_SIGNING_KEY", "11" * 32)
    assert "it was signed with another key" in refusal(capsys, story.receipt, ground.store)


@pytest.mark.parametrize(
    "pattern", ["corpus/*/*/images/*.parquet", "indexes/*/*/parts/*.faiss", "reports/*/*/retrieval.png"]
)
def test_a_file_that_was_restored_is_refused(capsys, after, story, pattern):
    """It is no part of any version: who restores it alone must not pass unseen."""
    removed = set(json.loads(story.receipt.read_text())["receipt"]["removed_versions"])
    files = [path.relative_to(story.before) for path in sorted(story.before.glob(pattern))]
    path = next(one for one in files if "/".join(one.parts[:2]) in removed and not (Path(after.root) / one).exists())
    (Path(after.root) / path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(story.before / path, Path(after.root) / path)
    assert f"removed versions are back: {'/'.join(path.parts[:2])}" in refusal(capsys, story.receipt, after)


def test_a_version_that_was_restored_is_refused(capsys, after, story):
    (index,) = [path.parent for path in story.before.glob("indexes/*/manifest.json")]
    shutil.copytree(index, Path(after.root) / "indexes" / index.name, dirs_exist_ok=True)
    line = refusal(capsys, story.receipt, after)
    assert f"erased data is still in indexes/{index.name}/" in line
    assert f"removed versions are back: indexes/{index.name}" in line


def test_the_receipt_names_the_models_that_learned_from_them(ground, story):
    release = read_release(ground.store)
    models = {f"encoders/{release.encoder}", f"rerankers/{release.reranker}"}
    assert set(json.loads(story.receipt.read_text())["receipt"]["trained_on_them"]) == models
    assert "models that may be trained on the erased scans remain: encoders/" in story.stdout.replace("\n", " ")


def test_it_names_none_where_they_were_no_part_of_the_training(ground, story, tmp_path):
    shutil.copytree(story.before, tmp_path / "store")
    store = Store(str(tmp_path / "store"))
    person = ground.person(ground.tested, tmp_path / "store")
    names = map(ground.pseudonym, (ground.tested, ground.trained))
    tested, trained = (ErasureTarget(kind=PATIENT, value=name) for name in names)
    receipt = erasure_factories.eraser(store, ground.key).erase(tested).receipt
    assert (receipt.trained_on_them, receipt.scans, receipt.release) == ((), 4, 2)
    assert found(tmp_path / "store", person) == {}
    # The splits that the models learned by are gone now; those in their place tell as much.
    assert plan_erasure(store, trained, ground.key).models
    with pytest.raises(NotFoundError, match="nothing was erased"):
        plan_erasure(store, tested, ground.key)
    table = from_parquet(store.artefact("splits", store.versions("splits")[0]).read_bytes("splits.parquet"))
    tests = set(table.filter(np.array(table["split"].to_pylist()) == "test")["image_id"].to_pylist())
    scans = read_scans(store.artefact("corpus", read_release(store).corpus)).to_pylist()
    another = next(row["patient"] for row in scans if row["image_id"] in tests)
    assert plan_erasure(store, ErasureTarget(kind=PATIENT, value=another), ground.key).models == ()
