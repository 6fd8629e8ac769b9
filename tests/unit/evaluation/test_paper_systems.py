import pytest
from tests.factories import tiny_config

from mrcg.corpus.sources import Source
from mrcg.evaluation.paper_systems import SYSTEMS
from mrcg.pipeline.plan import measuring_step, plan
from mrcg.stages.registry import MEASURE_ENCODER, MEASURE_RERANKER

SOURCE = Source("somewhere", "listing", 1, 1, False)


def steps(system, *overrides):
    config = SYSTEMS[system].configure(tiny_config(*overrides), margin=10.0)
    return config, {step.stage.kind: step for step in plan(config, SOURCE, "none")}


def test_settings_are_those_of_the_paper():
    """See docs/method.md#baselines."""
    rates = {name: steps(name)[0].reranker.learning_rate for name in SYSTEMS if name != "siamese"}
    assert rates == {
        "siamese+chebnet": 1e-4, "siamese+gcn": 1e-4, "siamese+graphsage": 1e-3, "siamese+gat": 1e-4, "mrcg": 5e-4,
    }  # fmt: skip
    decays = {name for name in SYSTEMS if steps(name)[0].reranker.weight_decay_first == 5e-4}
    assert decays == {"siamese+chebnet", "siamese+gcn"}
    for name in SYSTEMS:
        encoder = steps(name)[0].encoder
        if name == "mrcg":
            assert (encoder.loss, encoder.classification_weight) == ("triplet", 1.0)
        else:
            assert (encoder.loss, encoder.classification_weight) == ("contrastive", 0.0)
            assert (encoder.learning_rate, encoder.margin) == (5e-4, 10.0)


def test_siamese_network_is_trained_once_for_five_rows():
    assert len({steps(name)[1]["graphs"].version for name in SYSTEMS if name != "mrcg"}) == 1
    assert len({steps(name)[1]["rerankers"].version for name in SYSTEMS}) == 6


def test_mrcg_uses_the_encoder_that_a_run_trains():
    run = {step.stage.kind: step.version for step in plan(tiny_config(), SOURCE, "none")}
    assert steps("mrcg")[1]["encoders"].version == run["encoders"]
    # The paper's embedding is the trained part alone, so all that follows differs, unless a run has that one, too.
    alone = plan(tiny_config("embed.appearance.components=0"), SOURCE, "none")
    assert (
        steps("mrcg")[1]["graphs"].version
        == {step.stage.kind: step.version for step in alone}["graphs"]
        != run["graphs"]
    )


def test_settings_beyond_the_paper_are_turned_off():
    config, _ = steps(
        "mrcg", "reranker.features=[difference,rank]", "reranker.loss=listwise", "reranker.scale=true",
        "encoder.mirror=true", "encoder.whiten=8",
    )  # fmt: skip
    reranker = config.reranker
    assert (config.encoder.mirror, config.encoder.whiten) == (False, 0)
    assert (reranker.features, reranker.loss, reranker.scale) == (("difference",), "focal", False)


@pytest.mark.parametrize("epochs", [3, 40])
def test_last_ten_epochs_are_kept_or_all_if_fewer(epochs):
    config, _ = steps("siamese", f"encoder.epochs={epochs}", f"reranker.epochs={epochs}", "encoder.patience=2")
    assert config.encoder.snapshots == min(10, epochs)
    assert config.encoder.patience == 0
    assert steps("mrcg", f"reranker.epochs={epochs}")[0].reranker.snapshots == min(10, epochs)


def test_trial_depends_on_the_encoder_version():
    config, made = steps("siamese")
    trial = measuring_step(MEASURE_ENCODER, config, made.values())
    assert trial.inputs["encoders"] == made["encoders"].version
    assert trial.version != measuring_step(MEASURE_RERANKER, config, made.values()).version
