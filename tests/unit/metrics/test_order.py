import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mrcg.metrics.order import BY_DISTANCE, BY_SCORE, HitOrder, exact_copies, fused_scores, relative_distances

TINY = np.finfo(np.float32).tiny
WEIGHTS = (0.0, 0.01, 0.3, 2.0, 50.0)
ORDERS = (BY_DISTANCE, BY_SCORE, *(HitOrder(name="fused", distance_weight=weight) for weight in WEIGHTS))

#: A hit as (score, distance, whether it is a copy); grids, so that equal keys are equal to the last bit.
levels = st.sampled_from([0.0, 1.0, *(k / 16 for k in range(1, 16))])
steps = st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0, 1.0, 1.5, 2.0, 3.0, 7.0, np.inf])
real_hits = st.lists(st.tuples(levels, steps, st.booleans()), max_size=8)
lists_of_hits = st.lists(real_hits, min_size=1, max_size=4)


def table(lists, pads=0):
    """Scores, distances and copies of lists of hits in ANN order, padded to one length."""
    longest = max(len(hits) for hits in lists) + pads
    scores = np.full((len(lists), longest), -1.0, dtype=np.float32)
    distances = np.full((len(lists), longest), np.inf, dtype=np.float32)
    copies = np.zeros((len(lists), longest), dtype=bool)
    for row, hits in enumerate(lists):
        for place, (score, distance, copy) in enumerate(sorted(hits, key=lambda hit: hit[1])):
            scores[row, place], distances[row, place], copies[row, place] = score, distance, copy
    return scores, distances, copies


def naive_fused(scores, distances, copies, weight):
    """Order of one list: copies, then s - weight * d, then hits and pads without a finite distance."""
    positive = [float(d) for d in distances if np.isfinite(d) and d > 0]

    def key(place):
        if copies[place]:
            return (0, 0.0, place)
        if scores[place] < 0 or not np.isfinite(distances[place]):
            return (2, 0.0, place)
        relative = float(distances[place]) / float(np.median(positive)) if positive else 0.0
        return (1, weight * relative - np.log(max(float(scores[place]), float(TINY))), place)

    return sorted(range(len(scores)), key=key)


def fused(weight, scores, distances, copies=None):
    """Fused order of one list."""
    scores, distances = np.array([scores], dtype=np.float32), np.array([distances], dtype=np.float32)
    copies = np.zeros(scores.shape, dtype=bool) if copies is None else np.array([copies])
    return HitOrder(name="fused", distance_weight=weight).ranks(scores, distances, copies)[0].tolist()


@given(lists_of_hits, st.sampled_from(WEIGHTS), st.integers(0, 3))
def test_fused_order_equals_the_naive_one(lists, weight, pads):
    scores, distances, copies = table(lists, pads)
    ranks = HitOrder(name="fused", distance_weight=weight).ranks(scores, distances, copies)
    expected = [naive_fused(*row, weight) for row in zip(scores, distances, copies, strict=True)]
    assert ranks.tolist() == expected


@given(lists_of_hits, st.integers(0, 3), st.sampled_from(ORDERS))
def test_ranks_are_a_permutation_of_each_list_whatever_the_other_lists_are(lists, pads, order):
    scores, distances, copies = table(lists, pads)
    ranks = order.ranks(scores, distances, copies)
    for row in range(len(lists)):
        assert sorted(ranks[row].tolist()) == list(range(scores.shape[1]))
        alone = order.ranks(scores[row : row + 1], distances[row : row + 1], copies[row : row + 1])
        assert alone[0].tolist() == ranks[row].tolist()


@given(lists_of_hits, st.integers(0, 3))
def test_score_order_is_a_stable_sort_by_score_that_ignores_distances_and_copies(lists, pads):
    scores, distances, copies = table(lists, pads)
    expected = np.argsort(-scores, axis=1, kind="stable").tolist()
    assert BY_SCORE.ranks(scores, distances, copies).tolist() == expected
    assert BY_SCORE.ranks(scores, np.zeros_like(distances), ~copies).tolist() == expected


@given(lists_of_hits, st.integers(0, 3))
def test_ann_order_is_the_order_of_the_lists(lists, pads):
    scores, distances, copies = table(lists, pads)
    assert (BY_DISTANCE.ranks(scores, distances, copies) == np.arange(scores.shape[1])).all()


@given(real_hits.map(lambda hits: [(s, d if np.isfinite(d) else 9.0, c) for s, d, c in hits]))
def test_without_a_weight_the_fused_order_is_the_score_order_after_the_copies(hits):
    scores, distances, copies = table([hits], pads=1)
    ranks = HitOrder(name="fused").ranks(scores, distances, copies)[0]
    by_score = BY_SCORE.ranks(scores, distances, copies)[0]
    expected = [*np.flatnonzero(copies[0]), *(place for place in by_score if not copies[0, place])]
    assert ranks.tolist() == expected


@given(
    st.lists(st.floats(2**-60, 1, exclude_max=True, width=32), min_size=1, max_size=12),
    st.sets(st.integers(0, 1000), min_size=12, max_size=12),
)
def test_with_a_very_large_weight_the_fused_order_is_the_ann_order(scores, distances):
    assert fused(1e9, scores, sorted(distances)[: len(scores)]) == list(range(len(scores)))


@given(lists_of_hits, st.integers(1, 3), st.sampled_from(ORDERS))
def test_pads_come_last(lists, pads, order):
    scores, distances, copies = table(lists, pads)
    ranks = order.ranks(scores, distances, copies)
    for hits, row in zip(lists, ranks.tolist(), strict=True):
        assert set(row[len(hits) :]) == set(range(len(hits), scores.shape[1]))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("distance", [0.0, 2.0, np.inf])
def test_a_list_of_one_hit(order, distance):
    scores, distances, copies = table([[(0.5, distance, False)]])
    assert order.ranks(scores, distances, copies).tolist() == [[0]]


@pytest.mark.parametrize("order", ORDERS)
def test_a_list_without_hits(order):
    """A graph of one node without that node."""
    empty = np.empty((1, 0))
    assert order.ranks(empty, empty, empty > 0).shape == (1, 0)


@pytest.mark.parametrize("distance", [0.0, 3.0, np.inf])
def test_equal_distances_leave_the_order_by_score(distance):
    """Infinite ones leave nothing to compare: the ANN order is kept."""
    expected = [1, 3, 0, 2] if np.isfinite(distance) else [0, 1, 2, 3]
    assert fused(2.0, [0.5, 0.9, 0.5, 0.9], [distance] * 4) == expected


def test_equal_scores_keep_the_ann_order():
    for order in ORDERS:
        scores, distances, copies = table([[(0.7, d, False) for d in (0.0, 1.0, 1.0, 4.0, np.inf)]])
        assert order.ranks(scores, distances, copies).tolist() == [[0, 1, 2, 3, 4]]


def test_a_query_that_is_twice_among_the_hits_comes_first_twice_in_ann_order():
    ranks = fused(0.5, [0.9, 0.1, 0.8, 0.3], [0.0, 0.0, 0.1, 0.2], [False, True, False, True])
    assert ranks == [1, 3, 0, 2]


def test_a_hit_whose_distance_overflows_comes_after_those_with_a_finite_one_and_before_pads():
    assert fused(0.0, [0.1, 0.2, 0.9, 0.8, -1.0], [1.0, 2.0, np.inf, np.inf, np.inf]) == [1, 0, 2, 3, 4]


def test_a_score_of_zero_comes_after_small_scores_and_before_pads():
    assert fused(0.0, [0.0, 1e-30, 0.0, -1.0], [1.0, 2.0, 3.0, np.inf]) == [1, 0, 2, 3]
    assert np.isfinite(fused_scores(np.zeros((1, 2)), np.array([[1.0, 2.0]]), 1.0)).all()


def test_fused_scores_are_the_logarithm_minus_the_weighted_relative_distance():
    keys = fused_scores(np.array([[0.5, 0.25, -1.0, 0.9]]), np.array([[2.0, 6.0, np.inf, np.inf]]), 3.0)
    assert keys[0].tolist() == pytest.approx([np.log(0.5) - 1.5, np.log(0.25) - 4.5, -np.inf, -np.inf])


def test_the_distance_decides_among_hits_that_the_reranker_is_sure_of_and_the_score_elsewhere():
    scores = [0.02, 0.999, 0.998, 0.9999]
    assert fused(0.1, scores, [1.0, 1.1, 2.0, 3.0]) == [1, 2, 3, 0]


distance_lists = st.lists(st.just(np.inf) | st.just(0.0) | st.floats(0, 2**100, width=32), min_size=1, max_size=9)


@given(distance_lists)
def test_relative_distances_equal_the_naive_ones(distances):
    positive = [d for d in distances if 0 < d < np.inf]
    relative = relative_distances(np.array([distances], dtype=np.float32))[0]
    for value, distance in zip(relative, distances, strict=True):
        if distance == np.inf:
            assert value == np.inf
        else:
            assert value == pytest.approx(distance / np.median(positive) if positive else 0.0, rel=1e-9)


@given(distance_lists, st.sampled_from([0.25, 8.0, 1024.0]))
def test_relative_distances_do_not_depend_on_the_unit(distances, unit):
    values = np.array([distances], dtype=np.float64)
    assert (relative_distances(values) == relative_distances(values * unit)).all()


def test_lists_of_different_lengths_have_their_own_medians():
    distances = np.array([[1.0, 2.0, 4.0, 8.0], [5.0, np.inf, np.inf, np.inf], [0.0, 0.0, np.inf, np.inf]])
    assert relative_distances(distances).tolist() == [
        [1 / 3, 2 / 3, 4 / 3, 8 / 3],
        [1.0, np.inf, np.inf, np.inf],
        [0.0, 0.0, np.inf, np.inf],
    ]


def test_the_weight_is_a_number_from_zero():
    for weight in (-0.1, np.inf, np.nan):
        with pytest.raises(ValidationError, match="distance_weight"):
            HitOrder(name="fused", distance_weight=weight)


def vectors(seed, count, dim):
    draws = np.random.default_rng(seed)
    return (draws.normal(size=(count, dim)) * 10.0 ** draws.uniform(-2, 2)).astype(np.float32)


seeds = st.integers(0, 10_000)


@given(seeds, st.integers(1, 40))
def test_a_stored_copy_of_a_query_is_found(seed, dim):
    queries = vectors(seed, 3, dim)
    hits = np.repeat(queries.astype(np.float16)[:, None], 2, axis=1)
    assert exact_copies(queries, hits, dim).all()
    assert exact_copies(queries.astype(np.float16), hits, dim).all(), "a stored query"


@given(seeds, st.integers(1, 40))
def test_a_slightly_different_vector_is_no_copy(seed, dim):
    query = vectors(seed, 1, dim)
    change = np.zeros(dim, dtype=np.float32)
    change[seed % dim] = 0.003 * np.linalg.norm(query)
    assert not exact_copies(query, (query + change).astype(np.float16)[:, None], dim).any()


@given(seeds, st.integers(1, 20), st.integers(1, 20))
def test_with_an_appearance_part_only_that_part_is_compared(seed, trained, appearance):
    query = vectors(seed, 1, trained + appearance)
    same, other = query.copy(), query.copy()
    same[:, :trained] += 1.0
    other[:, trained:] *= 1.01
    hits = np.stack([same, other], axis=1).astype(np.float16)
    assert exact_copies(query, hits, trained).tolist() == [[True, False]]
    assert exact_copies(query[:, :trained], hits[..., :trained], trained).tolist() == [[False, True]]


def test_each_query_is_compared_with_its_own_hits():
    queries = np.eye(3, dtype=np.float32)
    hits = np.repeat(np.eye(3, dtype=np.float16)[None], 3, axis=0)
    assert (exact_copies(queries, hits, 3) == np.eye(3, dtype=bool)).all()


@pytest.mark.parametrize("value", [np.inf, np.nan, 3e38])
def test_vectors_that_overflow_are_no_copies(value):
    ordinary, overflown = np.ones((1, 4), dtype=np.float32), np.full((1, 4), value, dtype=np.float32)
    with np.errstate(over="ignore"):
        stored = np.stack([ordinary, overflown], axis=1).astype(np.float16)
    assert exact_copies(ordinary, stored, 4).tolist() == [[True, False]]
    assert exact_copies(overflown, stored, 4).tolist() == [[False, False]]
