"""A snapshot is measured as the released weights are: by the report's path and by that of `mrcg reproduce`."""

import pytest
from tests.factories import make_release, tiny_config

from mrcg.evaluation.epoch_trials import measure_encoder, measure_rerankers
from mrcg.metrics.report import Report
from mrcg.storage.store import Store

pytestmark = pytest.mark.slow

FIGURES = ("map", "map_full", "precision_at_1", "precision_at_5", "precision_at_10")


@pytest.fixture(scope="module", params=["paper", "dedup"])
def made(request, scans, tmp_path_factory):
    """A release of untrained models that have kept themselves as their epoch 0."""
    store = Store(str(tmp_path_factory.mktemp(request.param) / "store"))
    # `mrcg reproduce` has the paper's embedding: the trained part alone.
    make_release(store, scans, tiny_config(f"split.protocol={request.param}", "embed.appearance.components=0"))
    kinds = ("corpus", "splits", "encoders", "embeddings", "graphs", "rerankers", "reports")
    artefacts = {kind: store.artefact(kind, store.versions(kind)[0]) for kind in kinds}
    return artefacts, Report.model_validate_json(artefacts["reports"].read_bytes("report.json"))


def test_a_reranker_is_measured_as_in_the_report(made):
    artefacts, report = made
    trial = measure_rerankers(artefacts, "cpu")
    assert (trial.protocol, trial.queries, trial.gallery) == (report.protocol, report.queries, report.gallery)
    (epoch,) = trial.epochs
    assert epoch.epoch == 0
    for name in FIGURES:
        assert getattr(epoch, name) == pytest.approx(getattr(report.reranked, name))
        for label, figures in report.reranked.per_class.items():
            assert getattr(epoch.per_class[label], name) == pytest.approx(getattr(figures, name))
    shares = [epoch.per_class[label].same_class * of.queries for label, of in report.reranked.per_class.items()]
    assert epoch.same_class * report.queries == pytest.approx(sum(shares), rel=0.02)


def test_an_encoder_is_measured_as_in_the_report(made):
    artefacts, report = made
    epoch = measure_encoder(artefacts, 0, neighbours=20, device="cpu")
    for name in FIGURES:
        # Both search exactly; only neighbours at equal distance may change places.
        assert getattr(epoch, name) == pytest.approx(getattr(report.ann, name), abs=1e-3)
