"""The label audit on Ray: labels of phantoms that were flipped come first."""

import json

import numpy as np
import pytest
from tests.factories import mrcg

from mrcg.imaging.samples import write_samples
from mrcg.storage.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

IMAGES, FLIPPED, FIRST = 480, 0.03, 0.05


def flip_labels(source, seed):
    """Move some scans to the folder of another class; return their keys and true classes."""
    draws = np.random.default_rng(seed)
    paths = sorted(source.glob("*/*.png"))
    classes = sorted(path.name for path in source.iterdir())
    flipped = {}
    for number in sorted(draws.choice(len(paths), round(FLIPPED * len(paths)), replace=False).tolist()):
        path = paths[number]
        others = [name for name in classes if name != path.parent.name]
        moved = path.rename(source / others[int(draws.integers(len(others)))] / f"moved-{path.parent.name}-{path.name}")
        flipped[moved.relative_to(source).as_posix()] = path.parent.name
    return flipped


def test_flipped_labels_of_phantoms_are_among_the_first(tmp_path):
    source, store = tmp_path / "scans", Store(str(tmp_path / "store"))
    write_samples(source, IMAGES, seed=1)
    flipped = flip_labels(source, seed=11)
    assert len(flipped) == 14
    words = ["audit", "labels", "--source", str(source), "--store", store.url, "--recipe", "demo"]
    done = mrcg(*words, "--top", str(round(FIRST * IMAGES)), "--json", timeout=1700)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["scans"] == IMAGES
    found = [row["source_key"] for row in result["rows"] if row["source_key"] in flipped]
    assert len(found) >= 0.8 * len(flipped), f"{len(found)} of {len(flipped)} are among the first {len(result['rows'])}"
    assert len(store.versions("encoders")) == len(store.versions("embeddings")) == 3
