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


def test_the_table_holds_the_models_of_the_settings():
    assert tuple(MODELS) == get_args(RerankerSettings.model_fields["model"].annotation)


def test_an_unknown_model_is_one_line():
    spec = reranker("gcn").spec.model_copy(update={"model": "newer"})
    with pytest.raises(WeightsError, match="no reranker model newer: known are mrcg, "):
        Reranker(spec)


def test_the_spec_is_what_the_settings_ask_for():
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
    """Whatever stands in a pad's embedding: no score moves."""
    model = reranker(name)
    queries, neighbours, mask = inputs(seed, 2, nodes)
    model.fit_scale(model.graphs(queries, neighbours, mask))
    padded = torch.cat((neighbours, 100 * torch.randn(2, pads, 5)), dim=1)
    made = model(model.graphs(queries, neighbours, mask))
    more = model(model.graphs(queries, padded, torch.nn.functional.pad(mask, (0, pads))))[:, :nodes]
    assert torch.allclose(made[mask], more[mask], atol=1e-5)


@all_models
@given(seeds, sizes)
@torch.no_grad()
def test_the_order_of_the_nodes_does_not_matter(name, seed, nodes):
    model = reranker(name)
    made = model.graphs(*inputs(seed, 2, nodes))
    order = torch.randperm(nodes, generator=torch.Generator().manual_seed(seed))
    turned = GraphBatch(made.x_bnf[:, order], made.adjacency_bnn[:, order][:, :, order], made.mask_bn[:, order])
    assert torch.allclose(model(made)[:, order], model(turned), atol=1e-5)


@all_models
@given(seeds, sizes)
@torch.no_grad()
def test_the_order_of_the_neighbours_matters_by_their_rank_alone(name, seed, nodes):
    model = reranker(name, FEATURES[:-1])
    queries, neighbours, mask = inputs(seed, 2, nodes)
    order = torch.randperm(nodes, generator=torch.Generator().manual_seed(seed))
    made = model(model.graphs(queries, neighbours, mask))
    turned = model(model.graphs(queries, neighbours[:, order], mask[:, order]))
    assert torch.allclose(made[:, order][mask[:, order]], turned[mask[:, order]], atol=1e-4)


@all_models
@torch.no_grad()
def test_a_query_is_scored_in_a_batch_as_alone(name):
    model = reranker(name)
    queries, neighbours, mask = inputs(3, 4, 6)
    together = model(model.graphs(queries, neighbours, mask))
    alone = [model(model.graphs(queries[b : b + 1], neighbours[b : b + 1], mask[b : b + 1])) for b in range(4)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


@all_models
def test_equal_seeds_give_equal_weights(name):
    one, same, other = (reranker(name, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@all_models
@torch.no_grad()
def test_edges_are_dropped_in_training_only(name):
    """GraphSAGE and GAT, too, see which edges are left."""
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
