from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrcg.config.settings import RerankerSettings
from mrcg.errors import WeightsError
from mrcg.reranker.graph_features import GraphBatch
from mrcg.reranker.model import MODELS, Reranker
from mrcg.reranker.spec import RerankerSpec
from mrcg.reranker.trainer import new_reranker

FEATURES = ("difference", "magnitude", "product", "distance", "rank")
all_models = pytest.mark.parametrize("name", MODELS)
seeds, sizes = st.integers(0, 1000), st.integers(1, 8)


def reranker(name, features=FEATURES, scale=True, seed=1):
    settings = RerankerSettings(model=name, features=features, scale=scale, hidden=4)
    return new_reranker(settings, 5, seed, "ab").eval()


def inputs(seed, count, nodes):
    rng = torch.Generator().manual_seed(seed)
    mask = torch.rand(count, nodes, generator=rng) < 0.8
    return torch.randn(count, 5, generator=rng), torch.randn(count, nodes, 5, generator=rng), mask


def test_models_match_the_settings():
    assert tuple(MODELS) == get_args(RerankerSettings.model_fields["model"].annotation)


def test_an_unknown_model_is_rejected():
    spec = reranker("gcn").spec.model_copy(update={"model": "newer"})
    with pytest.raises(WeightsError, match="unknown reranker model newer: this version of MRCG supports mrcg, "):
        Reranker(spec)


def test_the_spec_follows_the_settings():
    settings = RerankerSettings(model="gat", features=("rank", "product"), scale=True, hidden=7, dropout=0.1)
    spec = new_reranker(settings, 5, 1, "abc").spec
    assert spec == RerankerSpec(
        model="gat",
        features=("rank", "product"),
        scale=True,
        embedding_dim=5,
        hidden=7,
        dropout=0.1,
        drop_edge=0.5,
        encoder="abc",
    )
    with pytest.raises(ValueError, match="encoder"):
        RerankerSpec.of(settings, 5, "")


@all_models
@given(seeds, sizes, st.integers(1, 4))
@torch.no_grad()
def test_pads_change_nothing(name, seed, nodes, pads):
    """The embeddings of pads do not affect any score."""
    model = reranker(name)
    queries, neighbours, mask = inputs(seed, 2, nodes)
    model.fit_scale(model.graphs(queries, neighbours, mask))
    padded = torch.cat((neighbours, 100 * torch.randn(2, pads, 5)), dim=1)
    expected = model(model.graphs(queries, neighbours, mask))
    with_pads = model(model.graphs(queries, padded, torch.nn.functional.pad(mask, (0, pads))))[:, :nodes]
    assert torch.allclose(expected[mask], with_pads[mask], atol=1e-5)


@all_models
@given(seeds, sizes)
@torch.no_grad()
def test_the_order_of_the_nodes_does_not_matter(name, seed, nodes):
    model = reranker(name)
    graph = model.graphs(*inputs(seed, 2, nodes))
    order = torch.randperm(nodes, generator=torch.Generator().manual_seed(seed))
    permuted = GraphBatch(graph.x_bnf[:, order], graph.adjacency_bnn[:, order][:, :, order], graph.mask_bn[:, order])
    assert torch.allclose(model(graph)[:, order], model(permuted), atol=1e-5)


@all_models
@given(seeds, sizes)
@torch.no_grad()
def test_the_order_of_the_neighbours_matters_only_through_the_rank_feature(name, seed, nodes):
    model = reranker(name, FEATURES[:-1])
    queries, neighbours, mask = inputs(seed, 2, nodes)
    order = torch.randperm(nodes, generator=torch.Generator().manual_seed(seed))
    expected = model(model.graphs(queries, neighbours, mask))
    permuted = model(model.graphs(queries, neighbours[:, order], mask[:, order]))
    assert torch.allclose(expected[:, order][mask[:, order]], permuted[mask[:, order]], atol=1e-4)


@all_models
@torch.no_grad()
def test_a_query_has_the_same_scores_in_a_batch_and_on_its_own(name):
    model = reranker(name)
    queries, neighbours, mask = inputs(3, 4, 6)
    together = model(model.graphs(queries, neighbours, mask))
    separate = [model(model.graphs(queries[b : b + 1], neighbours[b : b + 1], mask[b : b + 1])) for b in range(4)]
    assert torch.allclose(together, torch.cat(separate), atol=1e-5)


@all_models
def test_equal_seeds_give_equal_weights(name):
    first, same, other = (reranker(name, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@all_models
@torch.no_grad()
def test_edges_are_dropped_in_training_only(name):
    """GraphSAGE and GAT, which ignore edge weights, are also affected by dropped edges."""
    model = reranker(name)
    model.network.dropout.p = 0.0
    graph = model.graphs(*inputs(5, 2, 8))
    scores = {}
    for training in (True, False):
        model.train(training)
        scores[training] = [model(graph, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(scores[True][0], scores[True][1])
    assert not torch.allclose(scores[True][0], scores[True][2])
    assert torch.equal(scores[False][0], scores[False][2])
    assert torch.equal(scores[False][0], model(graph))


@all_models
def test_every_parameter_learns(name):
    model = reranker(name)
    queries, neighbours, _ = inputs(1, 3, 6)
    model(model.graphs(queries, neighbours, torch.ones(3, 6, dtype=torch.bool))).square().sum().backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in model.parameters())
