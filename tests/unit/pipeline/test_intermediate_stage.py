"""A stage that is only read while others are made: made where it is wanted, forgotten afterwards."""

import time

import pytest
from tests.factories import publish, tiny_config
from tests.manifests import REQUIRED

from mrcg.corpus.sources import Source
from mrcg.errors import SettingsError
from mrcg.execution.executor import silent
from mrcg.pipeline.plan import Ancestry, plan
from mrcg.pipeline.update import ReleaseUpdate
from mrcg.releases.gc import sweep
from mrcg.releases.release import Release
from mrcg.storage.catalog import dependencies_of, manifests_behind
from mrcg_jobs import runner

SOURCE = Source("somewhere", "listing", 1, 1, False)


@pytest.fixture
def made(store):
    """A store with versions of a frozen encoder, all but the trunk features; its settings and its steps by kind."""
    config = tiny_config("encoder.freeze=convolutions", "encoder.augment=false")
    steps = {step.stage.kind: step for step in plan(config, SOURCE, "none")}
    for kind in ("corpus", "splits", "encoders", "embeddings", "indexes", "graphs", "rerankers", "reports"):
        publish(store, steps[kind], {"file": kind.encode()}, REQUIRED.get(kind, {}))
    return store, config, steps


def test_it_is_not_made_again_for_what_is_there(made):
    store, config, steps = made
    chosen = [steps[kind] for kind in ("corpus", "features", "encoders", "embeddings")]
    results = list(runner.run_stages(store, config, SOURCE, chosen, None, lambda _: silent))
    assert [(result.stage, result.ran) for result in results] == [
        ("ingest", False), ("train-encoder", False), ("embed", False),
    ]  # fmt: skip


def test_it_is_made_for_what_is_not_there_and_for_its_own_sake(made):
    store, _, steps = made
    store.remove(f"embeddings/{steps['embeddings'].version}/manifest.json")
    assert runner._is_needed(store, steps["features"], list(steps.values()))
    assert runner._is_needed(store, steps["features"], [steps["features"]])


def test_what_was_made_from_it_is_whole_without_it_and_a_sweep_takes_it(made):
    store, _, steps = made
    publish(store, steps["features"], {"file": b"features"}, REQUIRED["features"])
    embeddings = store.manifest("embeddings", steps["embeddings"].version)
    assert embeddings.inputs["features"] == steps["features"].version
    assert {kind for kind, _ in dependencies_of(embeddings)} == {"corpus", "encoders", "splits"}
    assert "features" not in manifests_behind(store, "reports", steps["reports"].version)
    assert f"features/{steps['features'].version}" in sweep(store, grace_days=0).versions


def test_a_stage_that_the_settings_do_not_have_is_said(made):
    _, _, steps = made
    with pytest.raises(SettingsError, match="extract-features: these settings have no such stage.*cache_trunk=true"):
        runner.steps_of([step for kind, step in steps.items() if kind != "features"], "extract-features")


def test_a_reindex_and_an_erasure_run_the_trunk_for_what_they_embed(made):
    store, _, steps = made
    pins = {
        kind: steps[f"{kind}s" if kind != "index" else "indexes"].version
        for kind in ("encoder", "index", "reranker", "report")
    }
    release = Release(
        number=1, corpus=steps["corpus"].version, **pins, neighbours=20, ood_threshold=None, protocol="paper",
        reranked_map=0.5, created="", reason="",
    )  # fmt: skip
    update = ReleaseUpdate.of(store, release)
    for planned in (update.purge_steps("digest"), update.steps(SOURCE, Ancestry(base=release.corpus))):
        assert "features" not in {step.stage.kind for step in planned}
        assert not [step.name for step in planned if "features" in step.inputs]


def test_a_sweep_takes_old_features_of_a_store_in_use(made):
    store, _, steps = made
    manifest = publish(store, steps["features"], {"file": b"features"}, REQUIRED["features"])
    store.record_run(manifest, {"started": time.time() - 100 * 86_400})
    assert sweep(store, grace_days=14).versions == (f"features/{manifest.version}",)
