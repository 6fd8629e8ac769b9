"""The label audit on Ray: labels of phantoms that were flipped come first, and nothing is done twice."""

import csv
import json

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


@pytest.mark.timeout(600)
def test_an_audit_lists_scans_writes_its_files_and_goes_on_with_what_is_there(tmp_path, cluster):
    source, store = tmp_path / "scans", Store(str(tmp_path / "store"))
    write_samples(source, 96, seed=1)
    words = ("--ray", cluster, *TINY, "--top", "30")
    first = audit(
        source, store, *words, "--out", str(tmp_path / "audit.html"), "--manifest", str(tmp_path / "labels.csv")
    )
    assert first["scans"] == 96
    probabilities = [row["probability"] for row in first["rows"]]
    assert probabilities == sorted(probabilities), "worst first"
    assert len(first["rows"]) == 30
    page = (tmp_path / "audit.html").read_text()
    assert all(row["image_id"] in page for row in first["rows"])
    assert len(list(csv.DictReader((tmp_path / "labels.csv").read_text().splitlines()))) == 96
    # That of a run, and one for each fold.
    made = {kind: store.versions(kind) for kind in ("encoders", "embeddings")}
    assert {kind: len(versions) for kind, versions in made.items()} == {"encoders": 3, "embeddings": 3}
    assert audit(source, store, *words)["rows"] == first["rows"]
    assert {kind: store.versions(kind) for kind in made} == made


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
