"""SIGKILL in every stage in turn; what is finished at the end equals an undisturbed run."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.factories import MRCG, TWO_WORKERS, tiny_config

from mrcg.corpus.reader import read_scans
from mrcg.releases.gc import sweep
from mrcg.stages.registry import pipeline_stages
from mrcg.storage.store import Store

KINDS = [stage.kind for stage in pipeline_stages(tiny_config())]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DIE = str(Path(__file__).with_name("die.py"))
#: When the run is killed in the making of each kind: in the middle of its work, seen from outside by a
#: file of the attempt, or at a moment of publishing (see die.py).
MOMENTS = {
    "corpus": "work/segment-*",
    "splits": "published",
    "encoders": "checkpoints/*.safetensors",
    "embeddings": "output/embeddings/*.arrow",
    "indexes": "manifest",
    "graphs": "files",
    "rerankers": "checkpoints/*.safetensors",
    "reports": "manifest",
}


def visible(store):
    """Every complete version; reading them checks each manifest and each file."""
    found = {}
    for kind in KINDS:
        for version in store.versions(kind):
            artefact = store.artefact(kind, version)
            for name in artefact.names():
                artefact.read_bytes(name)
            found[kind] = (version, artefact.manifest.content)
    return found


def kill_when_there_is(kind, pattern, words, store):
    """Start a run and kill it once an attempt at this kind has a file of this pattern."""
    run = subprocess.Popen([MRCG, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    attempts = Path(store.path(f"{kind}/_attempts"))
    until = time.monotonic() + 240
    while not list(attempts.glob(f"*/{pattern}")):
        assert run.poll() is None, f"the run ended before {kind} had {pattern}"
        assert time.monotonic() < until
        time.sleep(0.005)
    run.kill()
    return run.wait()


def kill_at(kind, moment, words):
    """A run that kills itself at a moment of publishing."""
    run = subprocess.run([sys.executable, DIE, kind, moment, *words], capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL, (kind, run.stderr)
    return run.returncode


@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param(("corpus", "encoders", "indexes"), id="some"),
        pytest.param(tuple(MOMENTS), id="every", marks=pytest.mark.platform),
    ],
)
def test_a_run_killed_in_stage_after_stage_finishes_as_if_undisturbed(ray_run, cluster, tmp_path, kinds):
    store = Store(str(tmp_path / "store"))
    words = ["run", "--source", str(ray_run.source), "--store", store.url, "--ray", cluster, *TWO_WORKERS]
    undisturbed = visible(ray_run.store)
    for kind in kinds:
        moment, done = MOMENTS[kind], set(KINDS[: KINDS.index(kind)])
        inside = "/" in moment
        code = kill_when_there_is(kind, moment, words, store) if inside else kill_at(kind, moment, words)
        assert code == -signal.SIGKILL
        if moment == "published":
            done.add(kind)
        # Nothing half-written is visible: what is there is what was finished, whole and as it should be.
        seen = visible(store)
        assert set(seen) == done, (kind, moment)
        assert all(seen[k][0] == undisturbed[k][0] for k in seen)
        assert store.listdir(f"{kind}/_attempts"), "the attempt is left for the next run"
    last = subprocess.run([MRCG, *words], capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    assert_same(store, ray_run.store, undisturbed)


def assert_same(store, other, undisturbed):
    finished = visible(store)
    assert {k: v[0] for k, v in finished.items()} == {k: v[0] for k, v in undisturbed.items()}
    for kind in ("corpus", "splits", "indexes"):
        assert finished[kind] == undisturbed[kind], kind
    ids = [read_scans(s.artefact("corpus", finished["corpus"][0]))["image_id"].to_pylist() for s in (store, other)]
    assert ids[0] == ids[1]
    sweep(store)
    assert visible(store) == finished
    assert all(not store.listdir(f"{kind}/_attempts") for kind in KINDS)
