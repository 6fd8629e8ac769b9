import numpy as np
import pytest
import torch

from mrcg.config.settings import RerankerSettings
from mrcg.reranker import scorer
from mrcg.reranker.scorer import Scorer
from mrcg.reranker.trainer import new_reranker

NODES = 7
RNG = np.random.default_rng(0)
QUERY = RNG.normal(size=5).astype(np.float32)
NEIGHBOURS = RNG.normal(size=(NODES, 5)).astype(np.float16)


@pytest.fixture
def made():
    return Scorer(new_reranker(RerankerSettings(hidden=4), 5, 1, "ab"))


def test_an_influence_is_the_score_less_that_without_the_edge(made, monkeypatch):
    monkeypatch.setattr(scorer, "EDGES", 3)
    weights, moved = made.influences(QUERY, NEIGHBOURS, [4, 0])
    assert (weights.shape, moved.shape) == ((NODES, NODES), (2, NODES))
    mask = torch.ones(1, NODES, dtype=torch.bool)
    with torch.inference_mode():
        graph = made.reranker.graphs(torch.from_numpy(QUERY)[None], torch.from_numpy(NEIGHBOURS)[None], mask)
        assert (weights == graph.adjacency_bnn[0].numpy()).all()
        whole = torch.sigmoid(made.reranker(graph))[0]
        for place, node in enumerate((4, 0)):
            for other in range(NODES):
                cut = graph.adjacency_bnn.clone()
                cut[0, node, other] = cut[0, other, node] = 0
                without = torch.sigmoid(made.reranker(type(graph)(graph.x_bnf, cut, mask)))[0]
                assert moved[place, other] == pytest.approx(float(whole[node] - without[node]), abs=1e-6)


def test_a_node_does_not_move_itself(made):
    _, moved = made.influences(QUERY, NEIGHBOURS, range(NODES))
    assert np.abs(np.diag(moved)).max() < 1e-6
    assert np.abs(moved).max() > 1e-6
