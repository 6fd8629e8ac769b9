"""The stage that runs a frozen trunk, with its actors in this process."""

import numpy as np
import pytest
import safetensors.torch
from tests.factories import publish_corpus, tiny_config

from mrcg.corpus.features import StoredFeatures
from mrcg.corpus.reader import IMAGES, Corpus
from mrcg.corpus.sources import open_source, survey
from mrcg.encoder.embedder import trunk_features
from mrcg.encoder.model import build_trunk
from mrcg.encoder.trainer import new_encoder
from mrcg.errors import StoreError
from mrcg.execution.executor import LocalExecutor, silent
from mrcg.hashing import sha256
from mrcg.pipeline.plan import plan
from mrcg.storage.store import Store
from mrcg_jobs.ray_runtime import files
from mrcg_jobs.runner import run_stages


@pytest.fixture
def job(scans, tmp_path):
    """A store with a corpus of several files, settings with initial weights, and the steps that come next."""
    weights = {f"features.{name}": value for name, value in build_trunk("squeezenet1_1").state_dict().items()}
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors.torch.save(weights))
    config = tiny_config(
        "encoder.freeze=convolutions",
        "encoder.augment=false",
        "encoder.backbone=squeezenet1_1",
        f"encoder.weights={path}",
    )
    store, source = Store(str(tmp_path / "store")), survey(open_source(str(scans)))
    steps = {step.stage.kind: step for step in plan(config, source, sha256(path.read_bytes()))}
    publish_corpus(store, steps["corpus"], scans, config)
    return store, config, source, steps["features"], weights


def in_process(names, actor, work_for, compute):
    """What Ray Data does with the actors, one after the other."""
    made = actor(work_for(1))
    for name in names:
        seen.append(name)
        yield made({"file": name})


seen: list[str] = []


@pytest.fixture(autouse=True)
def _local(monkeypatch):
    seen.clear()
    monkeypatch.setattr(files, "each_file", in_process)


def run(store, config, source, step):
    (result,) = run_stages(store, config, source, [step], None, lambda _: silent, LocalExecutor())
    return result


@pytest.mark.parametrize("engine", ["torch", pytest.param("openvino", marks=pytest.mark.slow)])
def test_it_stores_what_the_trunk_makes_of_the_initial_weights(job, engine):
    store, config, source, step, weights = job
    config = config.model_copy(update={"encoder": config.encoder.model_copy(update={"trunk_engine": engine})})
    planned = {each.stage.kind: each for each in plan(config, source, step.settings["trunk"]["weights"])}["features"]
    assert (planned.version == step.version) == (engine == "torch")
    result = run(store, config, source, planned)
    corpus = Corpus(store.artefact("corpus", step.inputs["corpus"]))
    assert (result.counts.images, result.counts.width) == (96, 512)
    stored = StoredFeatures(store.artefact("features", result.version)).of_corpus(corpus)
    encoder = new_encoder(config.encoder, corpus.classes, config.seed, weights)
    rows = [0, 40, 95]
    direct = trunk_features(encoder, corpus.pixels(rows, config.encoder.input_size), 3, "cpu")
    assert np.allclose(stored[rows], direct, atol=1e-5)


def test_a_run_that_was_stopped_goes_on_with_the_files_that_are_left(job, monkeypatch):
    store, config, source, step, _ = job
    names = store.artefact("corpus", step.inputs["corpus"]).names(IMAGES)

    def stopped(*args):
        yield next(in_process(*args))
        raise StoreError("the disk is full")

    monkeypatch.setattr(files, "each_file", stopped)
    with pytest.raises(StoreError):
        run(store, config, source, step)
    assert store.versions("features") == []
    assert seen == names[:1]
    monkeypatch.setattr(files, "each_file", in_process)
    seen.clear()
    assert run(store, config, source, step).counts.images == 96
    assert seen == names[1:] and len(seen) > 1
    assert len(store.artefact("features", step.version).names()) == len(names)


def test_features_depend_on_mirrored_views_and_not_on_whitening(job):
    _, config, source, step, _ = job

    def versions(update):
        changed = config.model_copy(update={"encoder": config.encoder.model_copy(update=update)})
        return {each.stage.kind: each.version for each in plan(changed, source, step.settings["trunk"]["weights"])}

    plain, mirrored, whitened = versions({}), versions({"mirror": True}), versions({"whiten": 8})
    assert plain["features"] == whitened["features"] == step.version != mirrored["features"]
    assert len({each["encoders"] for each in (plain, mirrored, whitened)}) == 3
