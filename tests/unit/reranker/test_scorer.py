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
def trained():
    return Scorer(new_reranker(RerankerSettings(hidden=4), 5, 1, "ab"))


def test_an_influence_is_the_score_minus_the_score_without_the_edge(trained, monkeypatch):
    monkeypatch.setattr(scorer, "EDGE_BATCH", 3)
    weights, changes = trained.influences(QUERY, NEIGHBOURS, [4, 0])
    assert (weights.shape, changes.shape) == ((NODES, NODES), (2, NODES))
    mask = torch.ones(1, NODES, dtype=torch.bool)
    with torch.inference_mode():
        graph = trained.reranker.graphs(torch.from_numpy(QUERY)[None], torch.from_numpy(NEIGHBOURS)[None], mask)
        assert (weights == graph.adjacency_bnn[0].numpy()).all()
        full_scores = torch.sigmoid(trained.reranker(graph))[0]
        for number, node in enumerate((4, 0)):
            for other in range(NODES):
                cut = graph.adjacency_bnn.clone()
                cut[0, node, other] = cut[0, other, node] = 0
                without = torch.sigmoid(trained.reranker(type(graph)(graph.x_bnf, cut, mask)))[0]
                assert changes[number, other] == pytest.approx(float(full_scores[node] - without[node]), abs=1e-6)


def test_a_node_does_not_influence_itself(trained):
    _, changes = trained.influences(QUERY, NEIGHBOURS, range(NODES))
    assert np.abs(np.diag(changes)).max() < 1e-6
    assert np.abs(changes).max() > 1e-6
