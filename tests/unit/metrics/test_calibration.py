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
        in_bin = [i for i, s in enumerate(scores) if min(int(np.float32(s) * 10), 9) == b]
        if in_bin:
            gap = np.mean([float(scores[i]) for i in in_bin]) - np.mean([relevant[i] for i in in_bin])
            total += len(in_bin) / len(scores) * abs(gap)
    return total


@given(hits)
def test_expected_error_equals_the_naive_one(rows):
    scores, relevant = columns(rows)
    result = reliability(scores, relevant)
    assert result.expected_error == pytest.approx(naive_error(scores, relevant), abs=1e-6)
    assert sum(score_bin.count for score_bin in result.bins) == len(rows)


@given(hits)
def test_map_keeps_the_order_and_stays_in_the_unit_interval(rows):
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
    """Scores whose logits are twice the true ones plus 0.7."""
    draws = np.random.default_rng(seed)
    logits = draws.normal(1.0, 1.5, n)
    return 1 / (1 + np.exp(-(2 * logits + 0.7))), draws.random(n) < 1 / (1 + np.exp(-logits))


def test_fit_recovers_temperature_and_bias_and_improves_other_scores():
    fitted = fit_platt(*overconfident(20_000, 1))
    assert fitted.temperature == pytest.approx(2.0, rel=0.1)
    assert fitted.bias == pytest.approx(-0.35, abs=0.1)
    scores, relevant = overconfident(20_000, 2)
    before, after = reliability(scores, relevant), reliability(fitted.apply(scores), relevant)
    assert after.expected_error < 0.02 < 0.05 < before.expected_error


def test_fit_is_a_local_minimum():
    scores, relevant = overconfident(500, 3)
    fitted = fit_platt(scores, relevant)
    best = loss(fitted, scores, relevant)
    for slope, bias in ((1.01, 0.0), (0.99, 0.0), (1.0, 0.01), (1.0, -0.01)):
        other = Platt(temperature=fitted.temperature / slope, bias=fitted.bias + bias)
        assert loss(other, scores, relevant) > best


@pytest.mark.parametrize("value", [True, False])
def test_hits_of_one_kind_give_finite_parameters(value):
    fitted = fit_platt(np.full(50, 0.5), np.full(50, value))
    assert np.isfinite([fitted.temperature, fitted.bias]).all()
    assert fitted.apply(np.array([0.5]))[0] == pytest.approx(51 / 52 if value else 1 / 52, abs=0.01)


def test_inverse_scores_are_flattened_and_not_reversed():
    scores, relevant = overconfident(2_000, 4)
    fitted = fit_platt(1 - scores, relevant)
    assert fitted.temperature == pytest.approx(1 / MIN_SLOPE)
    assert fitted.apply(np.array([0.5]))[0] == pytest.approx(relevant.mean(), abs=0.02)


def test_no_scores():
    assert fit_platt(np.empty(0), np.empty(0, bool)) is None
    empty = reliability(np.empty(0), np.empty(0, bool))
    assert (empty.bins, empty.expected_error) == ((), 0)
