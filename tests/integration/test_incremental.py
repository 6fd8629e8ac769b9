"""A corpus that grows: only what is new is read, old files stay, groups keep their splits; kills leave no trace."""

import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.factories import MRCG, mrcg

from mrcg.corpus.reader import Corpus, read_quarantine
from mrcg.corpus.report import newest_corpus
from mrcg.imaging.samples import write_samples
from mrcg.privacy.suppression import PIXELS, suppress, token
from mrcg.storage.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

#: Small files of pixels, so that there are several segments.
SMALL = ("--set", "ingest.file_bytes=65536")
IMAGES = 400


def ingest(source, store, cluster, *more):
    done = mrcg("ingest", "--source", str(source), "--store", store.url, "--ray", cluster, *SMALL, *more, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["stages"][0]


def columns(store, *names):
    scans = Corpus(store.artefact("corpus", newest_corpus(store).version)).scans
    return sorted(zip(*(scans[name].to_pylist() for name in names), strict=True))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("incremental") / "scans"
    write_samples(folder, IMAGES, seed=1)
    return folder


@pytest.fixture(scope="module")
def undisturbed(source, cluster, tmp_path_factory):
    store = Store(str(tmp_path_factory.mktemp("undisturbed") / "store"))
    return store, ingest(source, store, cluster)


@pytest.mark.parametrize("times", [3, pytest.param(10, marks=pytest.mark.platform)])
def test_killed_at_random_moments_the_corpus_is_the_same(times, source, undisturbed, cluster, tmp_path):
    store, other = Store(str(tmp_path / "store")), undisturbed[0]
    rng, killed = random.Random(1), 0
    words = [MRCG, "ingest", "--source", str(source), "--store", store.url, "--ray", cluster, *SMALL]
    attempts = Path(store.root) / "corpus" / "_attempts"
    while killed < times:
        run = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not list(attempts.glob("*/lease-*")) and run.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(2, 7))
        run.kill()
        if run.wait() == 0:
            # It was done before its moment came: what counts is a corpus that was made under kills.
            shutil.rmtree(store.root)
            continue
        assert run.returncode == -signal.SIGKILL
        assert store.versions("corpus") in ([], [undisturbed[1]["version"]])
        killed += 1
    ingest(source, store, cluster)
    same = ("image_id", "pixel_hash", "group_id", "file", "file_row", "label", "source_key")
    assert columns(store, *same) == columns(other, *same)
    assert newest_corpus(store).content == newest_corpus(other).content
    assert newest_corpus(store).version == newest_corpus(other).version


def test_a_source_that_grew_is_read_where_it_is_new(source, undisturbed, cluster, tmp_path):
    grown = tmp_path / "scans"
    shutil.copytree(source, grown)  # keeps the times
    store = Store(str(tmp_path / "store"))
    first = ingest(grown, store, cluster)
    write_samples(grown / "glioma_tumor" / "new", 4, seed=9)
    second = ingest(grown, store, cluster)
    assert (first["counts"]["files_read"], second["counts"]["files_read"]) == (IMAGES, 4)
    assert second["counts"]["images"] == IMAGES + 4
    old, new = (store.manifest("corpus", one["version"]) for one in (first, second))
    assert new.inputs == {"corpus": old.version}
    stays = {entry.name for entry in new.files if entry.folder == old.folder}
    assert stays == {entry.name for entry in old.files if entry.name.startswith("images/")}
    corpus = Corpus(store.artefact("corpus", new.version))
    for image in corpus.scans["image_id"].to_pylist()[:: IMAGES // 8]:
        assert corpus.image(image).shape == (128, 128)

    # One file is changed, one removed: their rows go, the others stay; and a further run finds all of it there.
    changed, removed, *_ = sorted(grown.rglob("*.png"))
    changed.write_bytes(sorted(grown.rglob("*.png"))[-1].read_bytes())
    removed.unlink()
    third = ingest(grown, store, cluster)
    assert (third["counts"]["files_read"], third["counts"]["images"]) == (1, IMAGES + 3)
    assert not ingest(grown, store, cluster)["ran"]

    # Who is on the suppression list goes, without anything being read.
    gone = Corpus(store.artefact("corpus", third["version"])).scans.slice(5, 1).to_pylist()[0]
    suppress(store, [token(None, PIXELS, gone["pixel_hash"])])
    fourth = ingest(grown, store, cluster)
    assert fourth["counts"]["files_read"] == 0
    artefact = store.artefact("corpus", fourth["version"])
    assert gone["pixel_hash"] not in Corpus(artefact).scans["pixel_hash"].to_pylist()
    assert "suppressed" in read_quarantine(artefact)["reason"].to_pylist()


def test_too_many_bad_files_fail_and_nothing_is_read_twice(cluster, tmp_path):
    source, store = tmp_path / "scans", Store(str(tmp_path / "store"))
    write_samples(source, 20, seed=1)
    for n in range(2):
        (source / f"bad-{n}.png").write_text("words")
    words = ("ingest", "--source", str(source), "--store", store.url, "--ray", cluster)
    failed = mrcg(*words)
    assert failed.returncode == 1
    assert "2 of 22 files are bad (9.1 %, the limit is 5 %): 2 not_an_image; fix them, or raise" in failed.stderr
    assert store.versions("corpus") == []
    assert mrcg(*words, "--max-bad-fraction", "0.1").returncode == 0
    (version,) = store.versions("corpus")
    assert store.manifest("corpus", version).counts.reasons == {"not_an_image": 2}
