import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.metrics.calibration import MIN_SLOPE, Platt, fit_platt, reliability

hits = st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=40)


def columns(rows):
    return np.array([s for s, _ in rows], dtype=np.float32), np.array([r for _, r in rows], dtype=bool)


def naive_error(scores, relevant):
    total = 0.0
    for b in range(10):
        mine = [i for i, s in enumerate(scores) if min(int(np.float32(s) * 10), 9) == b]
        if mine:
            gap = np.mean([float(scores[i]) for i in mine]) - np.mean([relevant[i] for i in mine])
            total += len(mine) / len(scores) * abs(gap)
    return total


@given(hits)
def test_the_error_equals_the_naive_one(rows):
    scores, relevant = columns(rows)
    found = reliability(scores, relevant)
    assert found.expected_error == pytest.approx(naive_error(scores, relevant), abs=1e-6)
    assert sum(one.count for one in found.bins) == len(rows)


@given(hits)
def test_the_map_keeps_the_order_and_stays_in_the_unit_interval(rows):
    scores, relevant = columns(rows)
    fitted = fit_platt(scores, relevant)
    after = fitted.apply(np.sort(scores))
    assert 0 < fitted.temperature <= 1 / MIN_SLOPE * 1.001
    assert (np.diff(after) >= 0).all()
    assert (after >= 0).all()
    assert (after <= 1).all()


def loss(fitted, scores, relevant):
    p = np.clip(fitted.apply(scores), 1e-15, 1 - 1e-15)
    target = np.where(relevant, (relevant.sum() + 1) / (relevant.sum() + 2), 1 / ((~relevant).sum() + 2))
    return -(target * np.log(p) + (1 - target) * np.log(1 - p)).mean()


def overconfident(n, seed):
    """Scores whose logits are twice the true ones, and 0.7 too high."""
    draws = np.random.default_rng(seed)
    logits = draws.normal(1.0, 1.5, n)
    return 1 / (1 + np.exp(-(2 * logits + 0.7))), draws.random(n) < 1 / (1 + np.exp(-logits))


def test_it_finds_the_temperature_and_the_bias_and_helps_on_other_scores():
    fitted = fit_platt(*overconfident(20_000, 1))
    assert fitted.temperature == pytest.approx(2.0, rel=0.1)
    assert fitted.bias == pytest.approx(-0.35, abs=0.1)
    scores, relevant = overconfident(20_000, 2)
    before, after = reliability(scores, relevant), reliability(fitted.apply(scores), relevant)
    assert after.expected_error < 0.02 < 0.05 < before.expected_error


def test_no_neighbour_of_the_fit_is_better():
    scores, relevant = overconfident(500, 3)
    fitted = fit_platt(scores, relevant)
    best = loss(fitted, scores, relevant)
    for slope, bias in ((1.01, 0.0), (0.99, 0.0), (1.0, 0.01), (1.0, -0.01)):
        other = Platt(temperature=fitted.temperature / slope, bias=fitted.bias + bias)
        assert loss(other, scores, relevant) > best


@pytest.mark.parametrize("value", [True, False])
def test_one_class_alone_gives_finite_numbers(value):
    fitted = fit_platt(np.full(50, 0.5), np.full(50, value))
    assert np.isfinite([fitted.temperature, fitted.bias]).all()
    assert fitted.apply(np.array([0.5]))[0] == pytest.approx(51 / 52 if value else 1 / 52, abs=0.01)


def test_scores_that_tell_the_opposite_are_flattened_and_not_turned():
    scores, relevant = overconfident(2_000, 4)
    fitted = fit_platt(1 - scores, relevant)
    assert fitted.temperature == pytest.approx(1 / MIN_SLOPE)
    assert fitted.apply(np.array([0.5]))[0] == pytest.approx(relevant.mean(), abs=0.02)


def test_nothing_to_learn_from():
    assert fit_platt(np.empty(0), np.empty(0, bool)) is None
    nothing = reliability(np.empty(0), np.empty(0, bool))
    assert (nothing.bins, nothing.expected_error) == ((), 0)
