import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tests.factories import index_of
from tests.references import exact_distances, neighbour_lists

from mrcg.hashing import digest
from mrcg.reranker.graph_features import angular_adjacency, drop_edge, feature_widths, query_graphs
from mrcg.reranker.graph_table import graph_table
from mrcg.storage import schemas

nodes = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 8), st.integers(1, 5)),
    elements=st.floats(-100, 100, width=32),
)


@given(nodes)
def test_angular_adjacency_is_symmetric_within_0_and_1_with_a_zero_diagonal(x):
    a = angular_adjacency(torch.from_numpy(x))
    assert torch.equal(a, a.transpose(1, 2))
    assert (a >= 0).all()
    assert (a <= 1).all()
    assert (torch.diagonal(a, dim1=1, dim2=2) == 0).all()


@given(nodes)
def test_angular_adjacency_equals_the_naive_one(x):
    a = angular_adjacency(torch.from_numpy(x))
    for b, i, j in np.ndindex(*a.shape):
        u, v = x[b, i].astype(np.float64), x[b, j].astype(np.float64)
        size = np.linalg.norm(u) * np.linalg.norm(v)
        if i != j and min(np.linalg.norm(u), np.linalg.norm(v)) > 1e-3:
            assert a[b, i, j] == pytest.approx(1 - math.acos(np.clip(u @ v / size, -1, 1)) / math.pi, abs=2e-3)


def test_equal_opposite_and_right_angles():
    a = angular_adjacency(torch.tensor([[[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [0.0, 3.0]]]))[0]
    assert a[0].tolist() == pytest.approx([0.0, 1.0, 0.0, 0.5])


def test_graphs_have_difference_features_and_no_edges_to_pads():
    neighbours = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]])
    graph = query_graphs(torch.tensor([[1.0, 1.0]]), neighbours, torch.tensor([[True, True, False]]))
    assert graph.x_bnf[0].tolist() == [[0.0, -1.0], [-2.0, -3.0], [0.0, 0.0]]
    assert (graph.adjacency_bnn[0, 2] == 0).all()
    assert (graph.adjacency_bnn[0, :, 2] == 0).all()
    assert graph.adjacency_bnn[0, 0, 1] > 0.9


FEATURES = ("difference", "magnitude", "product", "distance", "rank")


@given(st.lists(st.sampled_from(FEATURES), min_size=1, max_size=5, unique=True), st.integers(0, 30), st.floats(0.2, 1))
def test_node_features_equal_the_naive_ones(features, seed, share):
    rng = np.random.default_rng(seed)
    queries = rng.normal(size=(2, 3)).astype(np.float32)
    neighbours = rng.normal(size=(2, 6, 3)).astype(np.float16)
    mask = rng.random((2, 6)) < share
    graph = query_graphs(torch.from_numpy(queries), torch.from_numpy(neighbours), torch.from_numpy(mask), features)
    assert graph.x_bnf.shape[2] == sum(feature_widths(features, 3))
    for b, i in np.ndindex(2, 6):
        q, stored = queries[b].astype(np.float64), neighbours[b].astype(np.float64)
        distances = [float(((q - g) ** 2).sum()) for g, exists in zip(stored, mask[b], strict=True) if exists]
        own = float(((q - stored[i]) ** 2).sum())
        columns = {
            "difference": q - stored[i],
            "magnitude": np.abs(q - stored[i]),
            "product": q * stored[i],
            "distance": [own / np.mean(distances) if distances else 0.0, math.log(1 + own)],
            "rank": [1 / math.log2(i + 2)],
        }
        expected = np.concatenate([columns[name] for name in features]) * mask[b, i]
        assert graph.x_bnf[b, i].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_distances_of_copies_of_the_query_are_zero():
    graph = query_graphs(torch.ones(1, 3), torch.ones(1, 4, 3), torch.ones(1, 4, dtype=torch.bool), ("distance",))
    assert (graph.x_bnf == 0).all()


@given(st.floats(0, 0.99), st.integers(0, 50))
def test_edges_are_dropped_in_both_directions(rate, seed):
    a = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(seed))
    a = (a + a.transpose(1, 2)) * (1 - torch.eye(6))
    dropped = drop_edge(a, rate, torch.Generator().manual_seed(seed))
    assert torch.equal(dropped, dropped.transpose(1, 2))
    assert ((dropped == a) | (dropped == 0)).all()


def test_the_share_of_dropped_edges_is_the_rate():
    kept = drop_edge(torch.ones(1, 300, 300), 0.3, torch.Generator().manual_seed(1))
    off_diagonal = kept.sum() / (300 * 299)
    assert abs(float(off_diagonal) - 0.7) < 0.02


@given(st.integers(4, 40), st.integers(1, 30), st.integers(1, 6), st.booleans(), st.integers(0, 9))
def test_neighbour_lists_equal_brute_force(count, n, groups, exclude, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, 3)).astype(np.float16)
    names = [f"g{rng.integers(groups)}" for _ in range(count)]
    index = index_of(vectors, [digest(i, 32) for i in range(count)], ["a"] * count, names, 2)
    allowed = rng.random(count) < 0.7
    queries = np.arange(count)
    near = neighbour_lists(index, queries, allowed, n, exclude)
    for q in queries.tolist():
        keep = [r for r in range(count) if allowed[r] and not (exclude and names[r] == names[q])]
        distances = exact_distances(vectors[q][None], vectors[keep][None])[0]
        expected = [keep[i] for i in np.argsort(distances, kind="stable")[:n].tolist()]
        assert near.rows_qk[q].tolist() == expected + [-1] * (n - len(expected))


def test_graph_tables_mark_neighbours_of_the_querys_class():
    vectors = np.arange(8, dtype=np.float16).reshape(4, 2)
    index = index_of(vectors, [digest(i, 32) for i in range(4)], ["a", "b", "a", "a"], ["1", "2", "3", "4"], 2)
    near = neighbour_lists(index, np.array([0]), np.ones(4, dtype=bool), 5, True)
    table = graph_table(np.array([0]), "train", near, np.array([0, 1, 0, 0]))
    assert table.schema == schemas.graphs(5)
    assert table.to_pylist()[0]["neighbours"] == [1, 2, 3, -1, -1]
    assert table.to_pylist()[0]["relevant"] == [False, True, True, False, False]
