"""Two runs at once on one store, from the first stage to the promotion."""

import json
import shutil
import subprocess

import pytest
from tests.factories import MRCG, TWO_WORKERS, tiny_config

from mrcg.releases.release import release_numbers
from mrcg.stages.registry import pipeline_stages
from mrcg.storage.store import Store

KINDS = [stage.kind for stage in pipeline_stages(tiny_config())]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("there", [pytest.param([], marks=pytest.mark.platform), KINDS[:5]])
def test_both_end_well_with_the_same_versions_and_one_release(ray_run, tmp_path, there):
    """From the first stage on; and from the graphs on, where both have to make them at the same time."""
    store = Store(str(tmp_path / "store"))
    for kind in there:
        shutil.copytree(f"{ray_run.store.root}/{kind}", f"{store.root}/{kind}")
    words = [MRCG, "run", "--source", str(ray_run.source), "--store", store.url, *TWO_WORKERS, "--json"]
    runs = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    results = []
    for run in runs:
        out, err = run.communicate(timeout=800)
        assert run.returncode == 0, err
        results.append(json.loads(out))
    alone = [(stage["stage"], stage["version"]) for stage in ray_run.result["stages"]]
    for result in results:
        assert [(stage["stage"], stage["version"]) for stage in result["stages"]] == alone
    assert sorted(result["promotion"]["promoted"] for result in results) == [False, True]
    assert release_numbers(store) == [1]
    for kind, (_, version) in zip(KINDS, alone, strict=True):
        assert store.versions(kind) == [version]
        assert store.listdir(f"{kind}/_attempts") == []
        assert store.artefact(kind, version).names()
    for kind in ("corpus", "splits", "indexes"):
        version = store.versions(kind)[0]
        assert store.manifest(kind, version) == ray_run.store.manifest(kind, version)
