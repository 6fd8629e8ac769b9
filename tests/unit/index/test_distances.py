import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.references import exact_distances

from mrcg.index import distances as index_distances
from mrcg.index.distances import Neighbours, exact_search, merge, nearest, recall_at, recall_with_ties, scan, widen

#: Few distinct distances, so that many candidates tie.
distances = st.sampled_from([0.0, 1.0, 1.5, 2.0])


def candidates(rows, distances):
    return np.array([rows], dtype=np.int64).reshape(1, -1), np.array([distances], dtype=np.float32).reshape(1, -1)


def first(pairs, k):
    """Rows and distances of the k nearest (row, distance) pairs, padded: ``nearest`` in plain Python."""
    real = sorted((distance, row) for row, distance in pairs if row >= 0)[:k]
    pads = k - len(real)
    return [row for _, row in real] + [-1] * pads, [distance for distance, _ in real] + [np.inf] * pads


@given(st.integers(1, 5), st.integers(0, 40), st.integers(1, 70), st.floats(1e-2, 1e3), st.integers(0, 1000))
def test_distances_agree_with_float64(queries, count, dim, scale, seed):
    rng = np.random.default_rng(seed)
    query = (rng.normal(size=(queries, dim)) * scale).astype(np.float32)
    vectors = (rng.normal(size=(queries, count, dim)) * scale).astype(np.float16)
    found = exact_distances(query, vectors)
    expected = ((query.astype(np.float64)[:, None, :] - vectors.astype(np.float64)) ** 2).sum(axis=2)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@given(st.integers(1, 8), st.integers(1, 60), st.integers(1, 70), st.integers(0, 1000))
def test_a_distance_depends_only_on_its_two_vectors(queries, count, dim, seed):
    rng = np.random.default_rng(seed)
    query, vectors = rng.normal(size=(queries, dim)), rng.normal(size=(count, dim)).astype(np.float16)
    together = exact_distances(query, np.broadcast_to(vectors, (queries, count, dim)))
    q, c = int(rng.integers(queries)), int(rng.integers(count))
    assert exact_distances(query[q : q + 1], vectors[None, c : c + 1])[0, 0] == together[q, c]
    # Memory order does not matter either.
    assert (exact_distances(np.asfortranarray(query), np.stack([vectors] * queries)) == together).all()


def test_distances_of_equal_vectors_are_zero():
    vectors = np.random.default_rng(1).normal(size=(3, 1000)).astype(np.float16) * 100
    assert (exact_distances(vectors, vectors[:, None]) == 0).all()


@given(st.lists(st.tuples(st.integers(-1, 8), distances), max_size=20), st.integers(1, 25))
def test_nearest_returns_the_first_of_the_sorted_candidates(pairs, k):
    found = nearest(*candidates(*([pair[i] for pair in pairs] for i in (0, 1))), k)
    rows, expected = first(pairs, k)
    assert found.rows_qk.tolist() == [rows]
    assert found.distances_qk.tolist() == [expected]


@given(
    st.lists(st.lists(st.tuples(st.integers(-1, 50), distances), max_size=8), min_size=1, max_size=5),
    st.integers(1, 12),
)
def test_merge_sorts_all_candidates(parts, k):
    merged = merge([Neighbours(*candidates(*([pair[i] for pair in part] for i in (0, 1)))) for part in parts], k)
    rows, expected = first([pair for part in parts for pair in part], k)
    assert merged.rows_qk.tolist() == [rows]
    assert merged.distances_qk.tolist() == [expected]


@given(
    st.lists(st.tuples(st.integers(0, 30), distances), max_size=30, unique_by=lambda pair: pair[0]), st.integers(1, 8)
)
def test_merging_results_of_parts_equals_searching_everything(pairs, k):
    fp16 = [[pair for pair in pairs if pair[0] % 2 == odd] for odd in (0, 1)]
    answers = [nearest(*candidates(*([pair[i] for pair in half] for i in (0, 1))), k) for half in fp16]
    whole = nearest(*candidates(*([pair[i] for pair in pairs] for i in (0, 1))), k)
    assert merge(answers, k).rows_qk.tolist() == whole.rows_qk.tolist()


def test_ties_are_broken_by_row():
    found = nearest(*candidates([9, 2, 5, -1], [1.0, 1.0, 1.0, 0.0]), 3)
    assert found.rows_qk.tolist() == [[2, 5, 9]]
    assert nearest(*candidates([9, 2, 5], [1.0, 1.0, 1.0]), 1).rows_qk.tolist() == [[2]]


@given(st.integers(0, 40), st.integers(1, 50), st.integers(1, 30), st.integers(0, 100))
def test_exact_search_sorts_all_distances(count, k, queries, seed):
    rng = np.random.default_rng(seed)
    # Small integer coordinates: distances are exact and tie often, but fewer rows tie than the slack.
    vectors = rng.integers(-9, 10, size=(count, 4)).astype(np.float16)
    query = rng.integers(-9, 10, size=(queries, 4)).astype(np.float32)
    found = exact_search(query, vectors, k)
    for q in range(queries):
        true = ((query[q] - vectors.astype(np.float32)) ** 2).sum(axis=1)
        expected = np.lexsort((np.arange(count), true))[:k].tolist()
        assert found[q].tolist() == expected + [-1] * (k - len(expected))


def test_a_gallery_of_several_blocks_is_searched_like_a_single_block(monkeypatch):
    rng = np.random.default_rng(2)
    vectors, query = rng.normal(size=(500, 6)).astype(np.float16), rng.normal(size=(7, 6))
    whole = exact_search(query, vectors, 20)
    monkeypatch.setattr("mrcg.index.distances.BLOCK", 33)
    assert (exact_search(query, vectors, 20) == whole).all()


def test_a_scan_returns_slack_candidates_but_never_more_than_there_are_vectors():
    vectors = np.random.default_rng(3).normal(size=(30, 4)).astype(np.float32)
    assert scan(vectors[:2], vectors, 5).shape == (2, 21)
    assert sorted(scan(vectors[:1], vectors, 50)[0].tolist()) == list(range(30))


@pytest.mark.parametrize(
    ("found", "exact", "recall"),
    [
        ([[1, 2]], [[1, 2]], 1.0),
        ([[2, 1]], [[1, 2]], 1.0),
        ([[1, 9], [3, 4]], [[1, 2], [3, 4]], 0.75),
        ([[1, -1, -1]], [[1, -1, -1]], 1.0),
        ([[-1, -1]], [[1, -1]], 0.0),
        ([[7, -1]], [[-1, -1]], 1.0),
        # Padding does not count: a query with a single neighbour has weight 1.
        ([[5, -1], [1, 9]], [[5, -1], [1, 2]], 2 / 3),
    ],
)
def test_recall_is_the_share_of_true_neighbours_found(found, exact, recall):
    assert recall_at(np.array(found), np.array(exact)) == pytest.approx(recall)


def test_recall_of_no_queries_is_one():
    assert recall_at(np.empty((0, 5), np.int64), np.empty((0, 5), np.int64)) == 1.0


@given(
    st.lists(st.tuples(st.integers(0, 30), distances), max_size=30, unique_by=lambda pair: pair[0]),
    st.sets(st.integers(0, 30)),
    st.integers(1, 8),
)
def test_recall_with_ties_counts_rows_that_tie_with_the_last_neighbour(pairs, seen, k):
    exact = nearest(*candidates(*([pair[i] for pair in pairs] for i in (0, 1))), k)
    some = [pair for pair in pairs if pair[0] in seen]
    found = nearest(*candidates(*([pair[i] for pair in some] for i in (0, 1))), k)
    rows, _ = first(pairs, k)
    true = [row for row in rows if row >= 0]
    last = max((dict(pairs)[row] for row in true), default=-1.0)
    hits = min(k, sum(distance <= last for _, distance in some))
    assert recall_with_ties(found, exact) == pytest.approx(hits / len(true) if true else 1.0)
    # Without ties it equals the recall by row.
    if len({distance for _, distance in pairs}) == len(pairs):
        assert recall_with_ties(found, exact) == pytest.approx(recall_at(found.rows_qk, exact.rows_qk))


def test_recall_with_ties_of_no_queries_is_one():
    nothing = Neighbours(np.empty((0, 5), np.int64), np.empty((0, 5), np.float32))
    assert recall_with_ties(nothing, nothing) == 1.0


def test_widen_is_exact_for_every_finite_fp16():
    fp16 = np.arange(2**16, dtype=np.uint16).view(np.float16)
    fp16 = fp16[np.isfinite(fp16)]
    assert (widen(fp16).view(np.uint32) == fp16.astype(np.float32).view(np.uint32)).all()


@given(st.integers(0, 1000), st.integers(1, 300), st.booleans())
def test_widen_takes_any_shape(count, dim, given_memory):
    fp16 = np.random.default_rng(count).normal(size=(dim, count)).astype(np.float16).T
    memory = np.full((count, dim), 7, dtype=np.float32) if given_memory else None
    found = widen(fp16, memory)
    assert found.shape == (count, dim)
    assert (found == fp16.astype(np.float32)).all()
    assert memory is None or found is memory


@given(
    st.integers(1, 6), st.integers(0, 40), st.integers(1, 20), st.integers(1, 8), st.booleans(), st.integers(0, 1000)
)
def test_nearest_agrees_with_a_full_sort(queries, count, k, levels, ordered, seed):
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.permutation(count) for _ in range(queries)]).astype(np.int64)
    distances = rng.integers(0, levels, (queries, count)).astype(np.float32)
    if ordered:
        distances = np.sort(rng.random((queries, count)).astype(np.float32), axis=1)
    rows[rng.random(rows.shape) < 0.1 * (not ordered)] = -1
    found = nearest(rows, distances, k)
    for q in range(queries):
        expected = first(zip(rows[q].tolist(), distances[q].tolist(), strict=True), k)
        assert (found.rows_qk[q].tolist(), found.distances_qk[q].tolist()) == expected


@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 300), st.floats(0, 1e3), st.integers(0, 1000))
def test_a_scan_of_many_queries_misses_none_of_the_nearest(k, queries, count, away, seed):
    rng = np.random.default_rng(seed)
    # Far from zero and close together, with copies: |q|² + |x|² - 2qx loses most of its digits.
    vectors = (rng.normal(size=(count, 8)).round(1)[rng.integers(0, max(1, count // 3), count)] + away).astype(
        np.float32
    )
    query = (rng.normal(size=(queries, 8)) + away).astype(np.float32)
    rows = scan(query, vectors, k)
    assert all(len(set(query_rows)) == rows.shape[1] for query_rows in rows.tolist())
    everything = exact_distances(query, np.broadcast_to(vectors, (queries, count, 8)))
    found = np.take_along_axis(everything, rows, 1)
    want = min(k, count)
    assert (np.sort(found, axis=1)[:, :want] == np.sort(everything, axis=1)[:, :want]).all()


def test_a_scan_does_not_depend_on_its_block_sizes(monkeypatch):
    rng = np.random.default_rng(0)
    vectors, query = rng.normal(size=(1000, 16)).astype(np.float32), rng.normal(size=(20, 16)).astype(np.float32)
    whole = np.sort(scan(query, vectors, 30), axis=1)
    monkeypatch.setattr(index_distances, "_VECTOR_BATCH", 37)
    monkeypatch.setattr(index_distances, "MATMUL_QUERIES", 1)
    monkeypatch.setattr(index_distances, "_QUERY_BATCH", 7)
    monkeypatch.setattr(index_distances, "_direct_knn", None)  # only matrix products are left
    assert (np.sort(scan(query, vectors, 30), axis=1) == whole).all()
