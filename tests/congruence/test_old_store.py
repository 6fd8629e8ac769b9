"""A store that older code made (``tests/fixtures``) opens, verifies, serves, rolls back, reindexes and erases."""

import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from tests import factories
from tests.fixtures.make_store import ERASED, KEYS, QUERY, SETTINGS, TIME, place, write_source
from tests.serving import assert_alike, serving

from mrcg.api.client import Client
from mrcg.api.requests import SearchParams
from mrcg.api.responses import Answer
from mrcg.corpus.reader import read_scans
from mrcg.releases.release import read_release
from mrcg.retrieval.local import LocalPipeline
from mrcg.storage.store import Store

pytestmark = pytest.mark.slow

FIXTURES = Path(__file__).parents[1] / "fixtures"


def words(*settings):
    return tuple(word for setting in settings for word in ("--set", setting))


#: What this version does by default and earlier ones did not: when they read a source, and in all else.
AS_READ = words("ingest.exclude=[]", "ingest.unknown_patients=[]", "ingest.volume_planes=[axial]")
AS_BEFORE = (*AS_READ, *words("embed.appearance.components=0", "evaluate.order=score", "evaluate.known_items=0"))
COMMON = ("--store", "store", "--source", "source/scans.csv")


@pytest.fixture
def on(cluster):
    """The words that name a cluster: it starts faster than one of its own."""
    return ("--ray", cluster)


class OldStore:
    """An unpacked archive, with its keys and the command line of now."""

    def __init__(self, root):
        self.root = root
        self.store = Store(str(root / "store"))

    def mrcg(self, *words):
        """Run a command beside the store; its standard output."""
        return self.run(*words).stdout

    def columns(self, corpus, key, value):
        """One column of a corpus' scans by another."""
        scans = read_scans(self.store.artefact("corpus", corpus), [key, value])
        return dict(zip(scans[key].to_pylist(), scans[value].to_pylist(), strict=True))

    def run(self, *words):
        """Run a command beside the store."""
        environment = {**os.environ, **KEYS, "MRCG_CACHE": str(self.root / "cache")}
        done = subprocess.run(
            [factories.MRCG, *words],
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done

    def first_answer(self):
        """The answer that the old code gave; it did not say which rank a hit has."""
        answer = Answer.model_validate_json((self.root / "answer.json").read_bytes())
        assert {hit.rank for hit in answer.hits} == {0}
        hits = [hit.model_copy(update={"rank": rank}) for rank, hit in enumerate(answer.hits, 1)]
        return answer.model_copy(update={"hits": hits})

    def answer(self, *words):
        """The answer to the query that the old code was asked, too."""
        return Answer.model_validate_json(self.mrcg("query", QUERY, "--store", "store", "--json", *words))


@pytest.fixture(params=sorted(FIXTURES.glob("store-*.tar.xz")), ids=lambda path: path.name.split(".")[0])
def old(request):
    with place() as root:
        with tarfile.open(request.param) as archive:
            archive.extractall(root, filter="data")
        yield OldStore(root)


def test_it_verifies_and_nothing_has_to_be_swept(old):
    verified = json.loads(old.mrcg("verify", "--store", "store", "--json"))
    assert verified["problems"] == []
    assert verified["versions"] > 10
    swept = json.loads(old.mrcg("gc", "--store", "store", "--json"))
    assert (swept["attempts"], swept["versions"], swept["files"]) == ([], [], [])


def test_it_answers_as_it_did(old):
    before, now = old.first_answer(), old.answer()
    assert_alike(now, before)
    assert now.classes == before.classes
    assert now.hits


def test_its_source_is_read_again_under_the_present_policy_and_its_groups_stay(old, on):
    before = read_release(old.store).corpus
    told = old.run("ingest", *COMMON, *on, *SETTINGS, *AS_BEFORE, "--json")
    assert f"corpus/{before} was made under an earlier privacy policy" in re.sub(r"\s+", " ", told.stderr)
    (after,) = {stage["version"] for stage in json.loads(told.stdout)["stages"]}
    groups = [old.columns(corpus, "image_id", "group_id") for corpus in (before, after)]
    assert groups[0] == groups[1], "no scan changes its part of a split"
    patients = [set(old.columns(corpus, "image_id", "patient").values()) for corpus in (before, after)]
    assert len(patients[0]) == len(patients[1])
    assert patients[0].isdisjoint(patients[1]), "a patient is an id and who assigned it"


def test_it_can_be_migrated_without_its_source(old):
    before = read_release(old.store).corpus
    shutil.rmtree(old.root / "source")
    made = json.loads(old.mrcg("corpus", "migrate", "--store", "store", "--corpus", before, "--json"))
    groups = [old.columns(corpus, "image_id", "group_id") for corpus in (before, made["corpus"])]
    assert groups[0] == groups[1]
    assert json.loads(old.mrcg("verify", "--store", "store", "--json"))["problems"] == []
    receipt = json.loads(old.mrcg("erase", "--store", "store", "--patient", "no_tumor-2", "--here", "--json"))[
        "receipt"
    ]
    assert receipt["scans"] == 4, "from what was, and from what was made of it"


@pytest.mark.platform
def test_a_run_with_todays_settings_gives_it_an_appearance_part_and_the_fused_order(old, on):
    before = read_release(old.store)
    result = json.loads(old.mrcg("run", *COMMON, *on, *SETTINGS, *AS_READ, "--promote", "always", "--json"))
    assert all(stage["ran"] for stage in result["stages"]), "all follows from a corpus of another policy"
    after = read_release(old.store)
    assert after.order.name in ("ann", "fused")
    assert after.known_first is not None
    assert old.answer().hits[0].distance == pytest.approx(0, abs=1e-2), "the query is in the gallery"
    old.mrcg("releases", "rollback", str(before.number), "--store", "store")
    assert_alike(old.answer(), old.first_answer().model_copy(update={"release": after.number + 1}))


def test_it_rolls_back_and_answers_under_the_release_before(old):
    current = read_release(old.store).number
    old.mrcg("releases", "rollback", str(current - 1), "--store", "store")
    release = read_release(old.store)
    assert release.number == current + 1
    assert release.pins == read_release(old.store, current - 1).pins
    assert old.answer().release == current + 1


def test_its_receipt_holds_and_the_erased_patient_stays_out(old):
    verdict = json.loads(old.mrcg("erase", "--store", "store", "--verify", "receipt.json", "--json"))
    assert verdict["holds"]
    assert (verdict["left"], verdict["versions_back"], verdict["not_suppressed"]) == ([], [], False)
    receipt = json.loads((old.root / "receipt.json").read_bytes())["receipt"]
    again = json.loads(old.mrcg("erase", "--store", "store", "--patient", ERASED, "--here", "--json"))["receipt"]
    assert again == receipt, "nothing of them came back: the same receipt"


def test_a_patient_is_erased_from_it(old):
    before = json.loads(old.mrcg("corpus", "report", "--store", "store", "--json"))
    receipt = json.loads(
        old.mrcg("erase", "--store", "store", "--patient", "no_tumor-2", "--here", "--out", "new.json", "--json")
    )
    assert receipt["receipt"]["scans"] == 4
    assert json.loads(old.mrcg("erase", "--store", "store", "--verify", "new.json", "--json"))["holds"]
    after = json.loads(old.mrcg("corpus", "report", "--store", "store", "--json"))
    assert after["images"] == before["images"] - 4
    assert old.answer().hits, "the rest is still searched"


def test_it_is_reindexed(old, on):
    before = read_release(old.store)
    new = old.root / "source" / "new.png"
    shutil.copy(old.root / QUERY, new)
    Image.open(new).rotate(90).save(new)
    os.utime(new, (TIME, TIME))
    with (old.root / "source" / "scans.csv").open("a") as file:
        file.write("new.png,no_tumor,new-patient,north\n")
    result = json.loads(old.mrcg("reindex", *COMMON, *on, "--json"))
    assert {stage["stage"]: stage["counts"].get("images") for stage in result["stages"]}["embed"] is not None
    after = read_release(old.store)
    assert (after.number, after.encoder, after.reranker) == (before.number + 1, before.encoder, before.reranker)
    assert (
        old.store.manifest("corpus", after.corpus).counts.images
        == 1 + old.store.manifest("corpus", before.corpus).counts.images
    )


def test_it_is_served(old):
    scan = (old.root / QUERY).read_bytes()
    with serving(old.store.url) as url, Client(url) as client:
        assert_alike(
            client.search(scan, SearchParams(k=10)), LocalPipeline.open(old.store).search(scan, SearchParams(k=10))
        )


def test_its_source_is_what_the_script_draws(old, tmp_path):
    paths = sorted((old.root / "source").glob("*.png"))
    write_source(tmp_path / "source", len(paths))
    for path in paths:
        assert Image.open(tmp_path / "source" / path.name).tobytes() == Image.open(path).tobytes()
