import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mrcg.evaluation.metrics import average_precision, mean_average_precision, precision_at
from mrcg.evaluation.report import order_figures

relevance = arrays.arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 12)))


def naive_ap(row, total):
    gained, hits = 0.0, 0
    for k, relevant in enumerate(row, 1):
        if relevant:
            hits += 1
            gained += hits / k
    return gained / total if total else 0.0


@given(relevance)
def test_map_equals_the_naive_one(rows):
    expected = [naive_ap(row, sum(row)) for row in rows]
    assert average_precision(rows) == pytest.approx(expected)
    assert mean_average_precision(rows) == pytest.approx(sum(expected) / len(expected))


@given(relevance, st.integers(0, 30))
def test_map_full_divides_by_what_could_be_found(rows, extra):
    totals = rows.sum(axis=1) + extra
    expected = [naive_ap(row, total) for row, total in zip(rows, totals, strict=True)]
    full = average_precision(rows, totals)
    assert full == pytest.approx(expected)
    assert (full <= average_precision(rows) + 1e-12).all()


@given(relevance, st.integers(1, 15))
def test_precision_equals_the_naive_one(rows, k):
    assert precision_at(rows, k) == pytest.approx([sum(row[:k]) / k for row in rows])


@given(relevance)
def test_metrics_lie_in_the_unit_interval(rows):
    for values in (average_precision(rows), precision_at(rows, 5)):
        assert (values >= 0).all()
        assert (values <= 1).all()


def test_the_perfect_and_the_worst_order():
    assert mean_average_precision(np.array([[True, True, False]])) == 1.0
    assert mean_average_precision(np.array([[False, False]])) == 0.0
    assert mean_average_precision(np.zeros((0, 5), dtype=bool)) == 0.0


def test_classes_are_measured_apart_and_overall_is_their_weighted_mean():
    rows = np.array([[True, False], [False, True], [True, True]])
    figures = order_figures(rows, ["a", "a", "b"], {"a": 10, "b": 1})
    assert figures.per_class["a"].queries == 2
    assert figures.map == pytest.approx((2 * figures.per_class["a"].map + figures.per_class["b"].map) / 3)
    assert figures.per_class["a"].map_full == pytest.approx((1 / 2 + 0.5 / 2) / 2)
    assert figures.precision_at_5 == pytest.approx((0.2 + 0.2 + 0.4) / 3)
