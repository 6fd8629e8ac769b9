"""The dense layers against PyTorch Geometric's sparse layers with the same weights."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.nn import ChebConv, GATConv, GCNConv, SAGEConv

from mrcg.reranker.graph_features import GraphBatch, drop_edge, query_graphs
from mrcg.reranker.layers import (
    AttentionLayer,
    ChebyshevLayer,
    FeatureScale,
    GCNLayer,
    SAGELayer,
    SkipConvolution,
    normalised_adjacency,
)

seeds, sizes, rates = st.integers(0, 1000), st.integers(1, 9), st.floats(0, 1)


def weighted_graph(seed, nodes, rate):
    """Return a double-precision graph after DropEdge, which may leave nodes without edges."""
    rng = torch.Generator().manual_seed(seed)
    queries, neighbours = torch.randn(1, 5, generator=rng), torch.randn(1, nodes, 5, generator=rng)
    graph = query_graphs(queries, neighbours, torch.ones(1, nodes, dtype=torch.bool))
    adjacency = drop_edge(graph.adjacency_bnn, rate, rng)
    torch.manual_seed(seed)
    return GraphBatch(graph.x_bnf.double(), adjacency.double(), graph.mask_bn)


def prepared(layer, sparse):
    """Return both layers in double precision, with non-zero biases."""
    bias = getattr(layer, "bias", None)
    if bias is None:
        bias = layer.convolution.lin_root.bias if isinstance(layer, SAGELayer) else layer.convolution.bias
    torch.nn.init.normal_(bias)
    return layer.double(), sparse.double()


def edges_of(graph):
    edges = graph.adjacency_bnn[0].nonzero().T
    return graph.x_bnf[0], edges, graph.adjacency_bnn[0][edges[0], edges[1]]


def assert_equal(layer, graph, expected):
    dense = layer(graph.x_bnf, graph.adjacency_bnn, graph.mask_bn)[0]
    assert torch.allclose(dense, expected, atol=1e-10)


@pytest.mark.parametrize("skips", [True, False])
@given(seeds, sizes, rates)
@torch.no_grad()
def test_the_convolution_equals_gcn(skips, seed, nodes, rate):
    """D̂^-1/2 (A+I) D̂^-1/2 X W, and with a skip F(X)."""
    graph = weighted_graph(seed, nodes, rate)
    layer, sparse = prepared((SkipConvolution if skips else GCNLayer)(5, 4), GCNConv(5, 4))
    sparse.lin.weight.copy_(layer.convolution.lin.weight)
    sparse.bias.copy_(layer.convolution.bias)
    x, edges, weights = edges_of(graph)
    expected = sparse(x, edges, weights) + (layer.skip(x) if skips else 0)
    assert_equal(layer, graph, expected.relu())


@given(seeds, sizes, rates)
@torch.no_grad()
def test_chebyshev_equals_pygs_of_three_polynomials(seed, nodes, rate):
    graph = weighted_graph(seed, nodes, rate)
    layer, sparse = prepared(ChebyshevLayer(5, 4), ChebConv(5, 4, K=3, normalization="sym"))
    for own, weight in zip(sparse.lins, layer.weights.weight.chunk(3), strict=True):
        own.weight.copy_(weight)
    sparse.bias.copy_(layer.bias)
    x, edges, weights = edges_of(graph)
    assert_equal(layer, graph, sparse(x, edges, weights, lambda_max=2.0).relu())


@given(seeds, sizes, rates)
@torch.no_grad()
def test_sage_equals_pygs_mean_of_neighbours(seed, nodes, rate):
    graph = weighted_graph(seed, nodes, rate)
    layer, sparse = prepared(SAGELayer(5, 4), SAGEConv(5, 4))
    sparse.lin_l.weight.copy_(layer.convolution.lin_rel.weight)
    sparse.lin_l.bias.copy_(layer.convolution.lin_root.bias)
    sparse.lin_r.weight.copy_(layer.convolution.lin_root.weight)
    x, edges, _ = edges_of(graph)
    assert_equal(layer, graph, sparse(x, edges).relu())


@pytest.mark.parametrize("average", [True, False])
@given(seeds, sizes, rates)
@torch.no_grad()
def test_attention_equals_gat(average, seed, nodes, rate):
    graph = weighted_graph(seed, nodes, rate)
    layer, sparse = prepared(AttentionLayer(5, 4, 3, average), GATConv(5, 4, 3, concat=not average))
    sparse.lin.weight.copy_(layer.convolution.lin.weight)
    sparse.att_src.copy_(layer.convolution.att_src[0])
    sparse.att_dst.copy_(layer.convolution.att_dst[0])
    sparse.bias.copy_(layer.convolution.bias)
    x, edges, _ = edges_of(graph)
    expected = torch.nn.functional.elu(sparse(x, edges) + layer.skip(x))
    assert expected.shape == (nodes, 4 if average else 12)
    assert_equal(layer, graph, expected)


@given(seeds, sizes, rates)
def test_normalised_adjacency_equals_the_naive_one(seed, nodes, rate):
    adjacency = weighted_graph(seed, nodes, rate).adjacency_bnn
    normalised = normalised_adjacency(adjacency)
    degree = [sum(row) for row in adjacency[0].tolist()]
    for i in range(nodes):
        for j in range(nodes):
            weight = float(adjacency[0, i, j])
            expected = weight / (degree[i] * degree[j]) ** 0.5 if weight else 0.0
            assert float(normalised[0, i, j]) == pytest.approx(expected, abs=1e-12)
    # The Laplacian's eigenvalues are in [0, 2]: those of L̂ = L - I are in [-1, 1].
    assert torch.linalg.eigvalsh(normalised).abs().max() <= 1 + 1e-9


def batch_of(x_bnf, mask_bn=None):
    mask = torch.ones(x_bnf.shape[:2], dtype=torch.bool) if mask_bn is None else mask_bn
    return GraphBatch(x_bnf, torch.zeros(*x_bnf.shape[:2], x_bnf.shape[1]), mask)


def test_a_fitted_scale_standardises_what_it_was_fitted_on():
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(4, 6, 3, generator=rng) * torch.tensor([0.01, 1.0, 30.0]) + torch.tensor([5.0, 0.0, -7.0])
    mask = torch.rand(4, 6, generator=rng) < 0.7
    x = torch.where(mask[..., None], x, 1e6)  # pads must not count
    scale = FeatureScale([1, 1, 1])
    scale.fit(batch_of(x, mask))
    scaled = scale(x, mask)
    assert (scaled[~mask] == 0).all()
    assert scaled[mask].mean(0).tolist() == pytest.approx([0, 0, 0], abs=1e-4)
    assert scaled[mask].std(0, correction=0).tolist() == pytest.approx([1, 1, 1], abs=1e-4)


def test_almost_constant_columns_are_not_scaled_up_without_limit():
    x = torch.randn(4, 50, 4, generator=torch.Generator().manual_seed(1))
    x[..., 1] *= 1e-6
    x[..., 2], x[..., 3] = 0.1, 0.0
    scale = FeatureScale([3, 1])
    scale.fit(batch_of(x))
    assert scale.scale_f[1] <= 101 * scale.scale_f[0]
    assert scale.scale_f[2] <= 101 * scale.scale_f[0]
    assert scale.scale_f[3] == 1


def test_a_scale_fitted_without_nodes_changes_nothing():
    x, mask = torch.ones(2, 3, 2), torch.zeros(2, 3, dtype=torch.bool)
    scale = FeatureScale([2])
    scale.fit(batch_of(x, mask))
    assert torch.equal(scale(x, ~mask), x)
