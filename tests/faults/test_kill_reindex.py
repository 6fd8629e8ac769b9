"""SIGKILL of `mrcg reindex` itself, with its workers on a cluster, in each stage that it runs."""

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.factories import MRCG, mrcg
from tests.faults.killing import assert_sound, copy_of
from tests.manifests import counts_of

from mrcg.corpus.sources import open_source, survey
from mrcg.imaging.samples import write_samples
from mrcg.pipeline.ancestry import ancestry_of, source_name
from mrcg.pipeline.update import ReleaseUpdate
from mrcg.releases.release import read_release, release_numbers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: Kind of the attempt that it is killed in, what has to be there first, and how many seconds later at most.
MOMENTS = (
    ("corpus", "lease-*", 2.0),
    ("corpus", "work/segment-*", 0.5),
    ("embeddings", "lease-*", 4.0),
    ("indexes", "lease-*", 0.5),
    ("graphs", "lease-*", 0.5),
    ("reports", "lease-*", 1.0),
)


@pytest.fixture
def grown(ray_run, tmp_path):
    """Copies of a store and of its source, which has grown since."""
    store = copy_of(ray_run.store, tmp_path / "store")
    source = shutil.copytree(ray_run.source, tmp_path / "scans")
    write_samples(source / "glioma_tumor" / "new", 8, seed=9)
    # As if it had been read from there.
    manifest = store.manifest("corpus", ray_run.release.corpus)
    counts = {**manifest.counts.stated(), "source": source_name(survey(open_source(str(source))), None)}
    data = manifest.model_copy(update={"counts": counts_of("corpus", counts)}).to_bytes()
    store.write_bytes(f"corpus/{manifest.version}/manifest.json", data)
    return store, source


def kill_at(moment, words, store, rng):
    kind, pattern, most = moment
    attempts = Path(store.path(f"{kind}/_attempts"))
    run = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not list(attempts.glob(f"*/{pattern}")) and run.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.005)
    time.sleep(rng.uniform(0, most))
    run.kill()
    assert run.wait() == -signal.SIGKILL, f"it ended before {kind} had {pattern}"


@pytest.mark.parametrize(
    "moments",
    [
        pytest.param(MOMENTS[1:3], id="some"),
        pytest.param(MOMENTS, id="every", marks=pytest.mark.platform),
    ],
)
def test_killed_in_stage_after_stage_it_pins_what_it_should(grown, cluster, tmp_path, moments):
    store, source = grown
    line = ReleaseUpdate.of(store, read_release(store))
    found = survey(open_source(str(source)))
    steps = {step.stage.kind: step.version for step in line.steps(found, ancestry_of(store, line.config, found, None))}
    wanted = line.release.pins | {kind: version for kind, version in steps.items() if kind in line.release.pins}
    image, rng = sorted(source.rglob("*.png"))[-1].read_bytes(), random.Random(7)
    words = [MRCG, "reindex", "--source", str(source), "--store", store.url, "--ray", cluster, "--promote", "always"]
    for moment in moments:
        kill_at(moment, words, store, rng)
        assert_sound(store, image)
        assert release_numbers(store) == [1]
    done = mrcg(*words[1:], "--json")
    assert done.returncode == 0, done.stderr
    assert_sound(store, image)
    assert read_release(store).pins == wanted
    corpus = store.manifest("corpus", steps["corpus"])
    assert corpus.inputs == {"corpus": line.release.corpus}
    assert corpus.counts.files_read == 8
