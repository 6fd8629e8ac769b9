import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.factories import tiny_config

from mrcg.corpus.sources import Source
from mrcg.corpus.splits import Fold
from mrcg.errors import NotFoundError
from mrcg.pipeline.plan import open_inputs, plan
from mrcg.stages.registry import artefact_kinds, pipeline_stages

SOURCE = Source("somewhere", "listing", 1, 1, False)


def versions(*overrides, source=SOURCE, weights="none"):
    return {step.stage.kind: step.version for step in plan(tiny_config(*overrides), source, weights)}


def changed(a, b):
    assert a.keys() == b.keys()
    return [kind for kind in a if a[kind] != b[kind]]


def test_stages_make_the_kinds_in_order():
    assert [stage.kind for stage in pipeline_stages()] == [kind for kind in artefact_kinds() if kind != "trials"]
    for stage in pipeline_stages():
        assert all(
            list(artefact_kinds()).index(kind) < list(artefact_kinds()).index(stage.kind)
            for kind in stage.inputs(tiny_config())
        )


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
def test_a_setting_changes_only_its_stage_and_later_ones(override, first):
    moved = changed(versions(), versions(override))
    assert moved[0] == first
    assert "reports" in moved
    assert ("corpus" in moved) == (first == "corpus")


FROZEN = ("encoder.freeze=convolutions", "encoder.augment=false")


def test_a_frozen_trunk_runs_once_for_all_encoders_that_share_it():
    pretrained = (*FROZEN, "encoder.weights=imagenet")
    made = {step.stage.kind: step for step in plan(tiny_config(*pretrained), SOURCE, "digest")}
    features = made["features"].version
    readers = {kind for kind, step in made.items() if features in step.inputs.values()}
    assert readers == {"encoders", "embeddings"}
    for more in ("encoder.epochs=7", "encoder.loss=contrastive", "encoder.embedding_dim=9", "seed=5"):
        assert versions(*pretrained, more, weights="digest")["features"] == features
    for more in ("encoder.input_size=96", "encoder.backbone=vgg11", "encoder.precision=bf16"):
        assert versions(*pretrained, more, weights="digest")["features"] != features
    assert versions(*pretrained, weights="other")["features"] != features
    # Without initial weights, the trunk is drawn.
    assert versions(*FROZEN, "seed=5")["features"] != versions(*FROZEN)["features"]


@pytest.mark.parametrize("more", ["encoder.freeze=none", "encoder.freeze=2", "encoder.cache_trunk=false"])
def test_a_trunk_that_is_trained_or_not_to_be_stored_has_no_stage(more):
    assert "features" not in versions(*FROZEN, more)


def test_the_folds_of_cross_fitting_share_the_features():
    steps = plan(tiny_config(*FROZEN, "reranker.graphs=cross_fit", "reranker.folds=2"), SOURCE, "digest")
    (features,) = {step.version for step in steps if step.stage.kind == "features"}
    assert all(step.inputs["features"] == features for step in steps if step.stage.kind in ("encoders", "embeddings"))


@pytest.mark.parametrize("override", ["compute.encoder_workers=2", "serve.deadline_ms=5", "release.max_map_drop=0.5"])
def test_settings_of_compute_serve_and_release_are_not_part_of_a_version(override):
    assert versions() == versions(override)


def test_the_location_of_source_and_weights_is_not_part_of_a_version():
    assert versions() == versions(
        "encoder.weights=/elsewhere.safetensors", source=Source("moved", "listing", 1, 1, False)
    )
    assert changed(versions(), versions(weights="other"))[0] == "encoders"


def test_the_error_for_a_missing_input_names_the_stage_to_run(store):
    step = plan(tiny_config(), SOURCE, "none")[3]
    with pytest.raises(NotFoundError, match="embed needs corpus/.*; run `mrcg ingest`"):
        open_inputs(store, step)


def test_cross_fitting_repeats_the_fold_stages_for_each_fold():
    steps = plan(tiny_config("reranker.graphs=cross_fit", "reranker.folds=3"), SOURCE, "none")
    again = [step.name for step in steps if step.fold is not None]
    one = ["train-encoder fold 1/3", "embed fold 1/3", "build-index fold 1/3", "build-graphs fold 1/3"]
    assert again[:4] == one and len(again) == 12
    assert len({step.version for step in steps}) == len(steps)
    by_name = {step.name: step for step in steps}
    reranker = by_name["train-reranker"]
    assert [step.name for step in steps][-2:] == ["train-reranker", "evaluate"]
    assert reranker.inputs["embeddings"] == by_name["embed"].version
    assert reranker.inputs["graphs:2"] == by_name["build-graphs fold 3/3"].version
    assert by_name["embed fold 2/3"].inputs["encoders"] == by_name["train-encoder fold 2/3"].version
    # The released encoder and its graphs are those of a run without folds.
    assert by_name["build-graphs"].version == versions()["graphs"]


@given(groups=st.lists(st.text(max_size=3), max_size=30), seed=st.integers(0, 99), count=st.integers(2, 4))
def test_folds_partition_whole_groups(groups, seed, count):
    members = np.array([Fold(number, count).members(groups, seed) for number in range(count)])
    assert (members.sum(axis=0) == 1).all()
    for group in set(groups):
        assert len({tuple(column) for column, one in zip(members.T.tolist(), groups, strict=True) if one == group}) == 1
