import pytest
from tests.making import tiny_config

from mrcg.errors import NotFoundError
from mrcg.manifest import KINDS
from mrcg.stages import STAGES, Source, open_inputs, plan

SOURCE = Source("somewhere", "listing", 1, 1, False)


def versions(*overrides, source=SOURCE, weights="none"):
    return {step.stage.kind: step.version for step in plan(tiny_config(*overrides), source, weights)}


def changed(a, b):
    return [kind for kind in KINDS if a[kind] != b[kind]]


def test_stages_make_the_kinds_in_order():
    assert [stage.kind for stage in STAGES] == list(KINDS)
    for stage in STAGES:
        assert all(list(KINDS).index(kind) < list(KINDS).index(stage.kind) for kind in stage.inputs)


def test_equal_settings_give_equal_versions():
    assert versions() == versions()


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("ingest.min_side=20", "corpus"),
        ("split.protocol=dedup", "splits"),
        ("encoder.epochs=7", "encoders"),
        ("index.shards=3", "indexes"),
        ("reranker.epochs=9", "rerankers"),
        ("evaluate.picture_queries=3", "reports"),
    ],
)
def test_a_setting_changes_its_stage_and_what_follows_only(override, first):
    moved = changed(versions(), versions(override))
    assert moved[0] == first
    assert "reports" in moved
    assert ("corpus" in moved) == (first == "corpus")


@pytest.mark.parametrize("override", ["compute.encoder_workers=2", "serve.deadline_ms=5", "release.max_map_drop=0.5"])
def test_how_wide_a_job_runs_is_not_part_of_a_version(override):
    assert versions() == versions(override)


def test_the_place_of_source_and_weights_is_not_part_of_a_version():
    assert versions() == versions(
        "encoder.weights=/elsewhere.safetensors", source=Source("moved", "listing", 1, 1, False)
    )
    assert changed(versions(), versions(weights="other"))[0] == "encoders"


def test_a_missing_input_names_the_stage_to_run(store):
    step = plan(tiny_config(), SOURCE, "none")[3]
    with pytest.raises(NotFoundError, match="embed needs corpus/.*: run `mrcg ingest`"):
        open_inputs(store, step)
