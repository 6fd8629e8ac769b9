import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcg.config.settings import RerankerSettings
from mrcg.reranker import scorer
from mrcg.reranker.model import MODELS
from mrcg.reranker.scorer import Reranking, Scorer
from mrcg.reranker.trainer import new_reranker

DIM = 5
FEATURES = ("difference", "magnitude", "product", "distance", "rank")
all_models = pytest.mark.parametrize("name", MODELS)


def untrained(name="mrcg", features=FEATURES, scale=True):
    return Scorer(new_reranker(RerankerSettings(model=name, features=features, scale=scale, hidden=4), DIM, 1, "ab"))


def graph(seed, nodes, dim=DIM):
    draws = np.random.default_rng(seed)
    return draws.normal(size=dim).astype(np.float32), draws.normal(size=(nodes, dim)).astype(np.float16)


def score_alone(trained, query, neighbours):
    """Scores of one graph without pads."""
    return trained.score(query[None], neighbours[None], np.ones((1, len(neighbours)), dtype=bool))[0]


@all_models
@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(1, 8))
def test_scores_without_a_node_are_those_of_the_graph_of_the_others(name, seed, nodes):
    trained, (query, neighbours) = untrained(name), graph(seed, nodes)
    left_out = trained.leave_one_out(query, neighbours)
    assert (left_out.weights_nn.shape, left_out.scores_nn.shape) == ((nodes, nodes), (nodes, nodes))
    assert np.isfinite(left_out.scores_nn).all()
    for node in range(nodes):
        others = np.delete(np.arange(nodes), node)
        if len(others):
            expected = score_alone(trained, query, neighbours[others])
            assert left_out.scores_nn[node, others] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("features", [(feature,) for feature in FEATURES])
def test_that_holds_for_each_node_feature(features):
    trained, (query, neighbours) = untrained(features=features), graph(3, 7)
    scores = trained.leave_one_out(query, neighbours).scores_nn
    changes = 0.0
    full = score_alone(trained, query, neighbours)
    for node in range(7):
        others = np.delete(np.arange(7), node)
        assert scores[node, others] == pytest.approx(score_alone(trained, query, neighbours[others]), abs=1e-5)
        changes = max(changes, np.abs(scores[node, others] - full[others]).max())
    assert changes > 1e-5, "a node does change the scores of others"


def test_weights_are_the_edges_of_the_whole_graph():
    trained, (query, neighbours) = untrained(), graph(4, 6)
    mask = torch.ones(1, 6, dtype=torch.bool)
    whole = trained.reranker.graphs(torch.from_numpy(query)[None], torch.from_numpy(neighbours)[None], mask)
    weights = trained.leave_one_out(query, neighbours).weights_nn
    assert (weights == whole.adjacency_bnn[0].numpy()).all()
    assert (weights == weights.T).all()
    assert (np.diag(weights) == 0).all()


@pytest.mark.parametrize("batch", [1, 3, 7, 64])
def test_the_size_of_a_batch_does_not_matter(batch, monkeypatch):
    trained, (query, neighbours) = untrained(), graph(5, 7)
    expected = trained.leave_one_out(query, neighbours).scores_nn
    monkeypatch.setattr(scorer, "GRAPH_BATCH", batch)
    assert trained.leave_one_out(query, neighbours).scores_nn == pytest.approx(expected, abs=1e-6)


def test_the_appearance_part_of_a_vector_does_not_matter():
    trained, (query, neighbours) = untrained(), graph(6, 6, DIM + 3)
    whole = trained.leave_one_out(query, neighbours)
    first = trained.leave_one_out(query[:DIM], neighbours[:, :DIM])
    assert (whole.weights_nn == first.weights_nn).all()
    assert (whole.scores_nn == first.scores_nn).all()


@pytest.mark.parametrize("vector", [np.zeros(DIM), np.ones(DIM)])
def test_equal_neighbours_have_finite_scores(vector):
    neighbours = np.tile(vector, (4, 1)).astype(np.float16)
    left_out = untrained().leave_one_out(vector.astype(np.float32), neighbours)
    assert np.isfinite(left_out.scores_nn).all()
    assert np.isfinite(left_out.weights_nn).all()


def test_the_reranking_of_a_service_explains_one_query_alike():
    trained, (query, neighbours) = untrained(), graph(7, 5)
    explained, expected = Reranking(trained).explain(query, neighbours), trained.leave_one_out(query, neighbours)
    assert (explained.weights_nn == expected.weights_nn).all()
    assert (explained.scores_nn == expected.scores_nn).all()
