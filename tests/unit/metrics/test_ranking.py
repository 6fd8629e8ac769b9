import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mrcg.metrics.ranking import average_precision, mean_average_precision, precision_at, recall_at
from mrcg.metrics.report import Queries, gains, order_figures

relevance = arrays.arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 12)))


def naive_ap(row, total):
    precision_sum, hits = 0.0, 0
    for k, relevant in enumerate(row, 1):
        if relevant:
            hits += 1
            precision_sum += hits / k
    return precision_sum / total if total else 0.0


@given(relevance)
def test_map_equals_the_naive_one(rows):
    expected = [naive_ap(row, sum(row)) for row in rows]
    assert average_precision(rows) == pytest.approx(expected)
    assert mean_average_precision(rows) == pytest.approx(sum(expected) / len(expected))


@given(relevance, st.integers(0, 30))
def test_map_full_divides_by_the_reachable_relevant_scans(rows, extra):
    totals = rows.sum(axis=1) + extra
    expected = [naive_ap(row, total) for row, total in zip(rows, totals, strict=True)]
    full = average_precision(rows, totals)
    assert full == pytest.approx(expected)
    assert (full <= average_precision(rows) + 1e-12).all()


@given(relevance, st.integers(1, 15))
def test_precision_equals_the_naive_one(rows, k):
    assert precision_at(rows, k) == pytest.approx([sum(row[:k]) / k for row in rows])


@given(relevance, st.integers(1, 15), st.integers(0, 30))
def test_recall_equals_the_naive_one(rows, k, extra):
    totals = rows.sum(axis=1) + extra
    expected = [sum(row[:k]) / total if total else 0.0 for row, total in zip(rows, totals, strict=True)]
    assert recall_at(rows, k, totals) == pytest.approx(expected)


@given(relevance)
def test_metrics_lie_in_the_unit_interval(rows):
    for values in (average_precision(rows), precision_at(rows, 5)):
        assert (values >= 0).all()
        assert (values <= 1).all()


def test_perfect_and_worst_order():
    assert mean_average_precision(np.array([[True, True, False]])) == 1.0
    assert mean_average_precision(np.array([[False, False]])) == 0.0
    assert mean_average_precision(np.zeros((0, 5), dtype=bool)) == 0.0


def test_figures_per_class_and_their_weighted_mean():
    rows = np.array([[True, False], [False, True], [True, True]])
    queries = Queries(["a", "a", "b"], ["x", "y", "z"], np.array([10, 10, 1]))
    figures = order_figures(rows, queries, 200)
    assert figures.per_class["a"].queries == 2
    assert figures.map == pytest.approx((2 * figures.per_class["a"].map + figures.per_class["b"].map) / 3)
    assert figures.per_class["a"].map_full == pytest.approx((1 / 2 + 0.5 / 2) / 2)
    assert figures.precision_at_1 == pytest.approx(2 / 3)
    assert figures.precision_at_5 == pytest.approx((0.2 + 0.2 + 0.4) / 3)
    assert figures.recall_at_10 == pytest.approx((0.1 + 0.1 + 2.0) / 3)
    for row in (figures, *figures.per_class.values()):
        assert row.intervals.map.low <= row.map <= row.intervals.map.high
    assert figures.intervals.map.low < figures.intervals.map.high


def test_gains_are_differences_of_the_figures():
    rows = np.array([[True, False, False], [False, True, True], [True, True, False]])
    queries = Queries(["a", "a", "b"], ["x", "y", "z"], np.array([5, 5, 5]))
    better = np.sort(rows, axis=1)[:, ::-1]
    gain = gains(rows, better, queries, 200)
    before, after = order_figures(rows, queries, 200), order_figures(better, queries, 200)
    assert gain.map.mean == pytest.approx(after.map - before.map)
    assert gain.map_full.mean == pytest.approx(after.map_full - before.map_full)
    assert (gain.precision_at_10.mean, gain.precision_at_10.low, gain.precision_at_10.high) == (0.0, 0.0, 0.0)
