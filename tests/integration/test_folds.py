"""What encoders of folds are for: an audit of labels, and graphs of scans that their encoder did not see.

Both start from a copy of the run that all tests share, and the second finds the encoders of the first.
"""

import csv
import json
import shutil

import numpy as np
import pytest
from tests.factories import TINY, mrcg

from mrcg.imaging.samples import write_samples
from mrcg.storage.store import Store

pytestmark = pytest.mark.slow

IMAGES, FLIPPED, FIRST = 480, 0.03, 0.05


def flip_labels(source, seed, share):
    """Move some scans to the folder of another class; return their keys and true classes."""
    draws = np.random.default_rng(seed)
    paths = sorted(source.glob("*/*.png"))
    classes = sorted(path.name for path in source.iterdir())
    flipped = {}
    for number in sorted(draws.choice(len(paths), round(share * len(paths)), replace=False).tolist()):
        path = paths[number]
        others = [name for name in classes if name != path.parent.name]
        moved = path.rename(source / others[int(draws.integers(len(others)))] / f"moved-{path.parent.name}-{path.name}")
        flipped[moved.relative_to(source).as_posix()] = path.parent.name
    return flipped


def audit(source, store, *words):
    done = mrcg("audit", "labels", "--source", str(source), "--store", store.url, *words, "--json", timeout=1700)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def words(cluster):
    return ("--ray", cluster, *TINY)


@pytest.fixture(scope="module")
def audited(ray_run, words, tmp_path_factory):
    """A store after an audit, what the audit said, and the folder of its page and its table."""
    folder = tmp_path_factory.mktemp("audit")
    store = Store(str(shutil.copytree(ray_run.store.root, folder / "store")))
    files = ("--out", str(folder / "audit.html"), "--manifest", str(folder / "labels.csv"))
    return store, audit(ray_run.source, store, *words, "--top", "30", *files), folder


def test_an_audit_lists_scans_writes_its_files_and_goes_on_with_what_is_there(audited, ray_run, words):
    store, first, folder = audited
    assert first["scans"] == 96, "the class of one scan is in no fold"
    probabilities = [row["probability"] for row in first["rows"]]
    assert probabilities == sorted(probabilities), "worst first"
    assert len(first["rows"]) == 30
    page = (folder / "audit.html").read_text()
    assert all(row["image_id"] in page for row in first["rows"])
    files = [path for path in ray_run.source.rglob("*") if path.is_file()]
    assert len(list(csv.DictReader((folder / "labels.csv").read_text().splitlines()))) == len(files)
    # That of a run, and one for each fold.
    made = {kind: store.versions(kind) for kind in ("encoders", "embeddings")}
    assert {kind: len(versions) for kind, versions in made.items()} == {"encoders": 3, "embeddings": 3}
    assert audit(ray_run.source, store, *words, "--top", "30")["rows"] == first["rows"]
    assert {kind: store.versions(kind) for kind in made} == made


def test_graphs_of_scans_that_their_encoder_did_not_see(audited, ray_run, words, tmp_path):
    store = Store(str(shutil.copytree(audited[0].root, tmp_path / "store")))
    made = ("--source", str(ray_run.source), "--store", store.url, *words, "--set", "reranker.graphs=cross_fit")
    done = mrcg("run", *made, "--json", timeout=900)
    assert done.returncode == 0, done.stderr
    stages = {stage["stage"]: stage for stage in json.loads(done.stdout)["stages"]}
    assert [stages[f"train-encoder fold {n}/2"]["ran"] for n in (1, 2)] == [False, False]
    unseen = [stages[f"build-graphs fold {n}/2"]["counts"]["train"] for n in (1, 2)]
    assert min(unseen) > 0 and sum(unseen) == stages["build-graphs"]["counts"]["train"]
    assert stages["train-reranker"]["counts"]["epochs"] == 2


@pytest.mark.platform
@pytest.mark.timeout(1800)
def test_flipped_labels_of_phantoms_are_among_the_first(tmp_path):
    source, store = tmp_path / "scans", Store(str(tmp_path / "store"))
    write_samples(source, IMAGES, seed=1)
    flipped = flip_labels(source, 11, FLIPPED)
    assert len(flipped) == 14
    result = audit(source, store, "--recipe", "demo", "--top", str(round(FIRST * IMAGES)))
    assert result["scans"] == IMAGES
    found = [row["source_key"] for row in result["rows"] if row["source_key"] in flipped]
    assert len(found) >= 0.8 * len(flipped), f"{len(found)} of {len(flipped)} are among the first {len(result['rows'])}"
