import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.metrics.bootstrap import Interval
from mrcg.metrics.calibration import (
    MAX_ERROR,
    MIN_HITS,
    MIN_SLOPE,
    Calibration,
    Platt,
    Reliability,
    Skill,
    _descend,
    _logit,
    fit_platt,
    reliability,
    skill,
    slope_interval,
    why_withheld,
)

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


def test_slope_of_informative_scores_is_above_zero_and_covers_the_true_one():
    scores, relevant = overconfident(1_000, 5)
    bounds = slope_interval(scores, relevant, np.arange(1_000) // 10, 1)
    assert 0 < bounds.low < 0.5 < bounds.high < 1
    assert bounds.low < 1 / fit_platt(scores, relevant).temperature < bounds.high


def test_slope_of_shuffled_scores_includes_zero():
    for seed in range(6, 10):
        scores, relevant = overconfident(300, seed)
        shuffled = np.random.default_rng(seed).permutation(scores)
        bounds = slope_interval(shuffled, relevant, np.arange(300) // 10, 1)
        assert bounds.low < 0 < bounds.high


def test_slope_of_inverse_scores_is_below_zero():
    scores, relevant = overconfident(500, 10)
    assert slope_interval(1 - scores, relevant, np.arange(500) // 10, 1).high < 0


def test_slope_has_a_wider_interval_where_hits_of_a_query_are_alike():
    scores, relevant = (np.repeat(column, 10) for column in overconfident(40, 11))
    by_query = slope_interval(scores, relevant, np.arange(400) // 10, 1)
    by_hit = slope_interval(scores, relevant, np.arange(400), 1)
    assert by_query.high - by_query.low > 1.5 * (by_hit.high - by_hit.low)


def test_slope_interval_is_repeatable_and_numbers_of_groups_do_not_matter():
    scores, relevant = overconfident(200, 12)
    groups = np.arange(200) // 10
    bounds = slope_interval(scores, relevant, groups, 1)
    assert bounds == slope_interval(scores, relevant, groups, 1)
    assert bounds == slope_interval(scores, relevant, 7 * groups + 3, 1), "queries without a hit leave gaps"


@pytest.mark.parametrize("scores", [np.full(40, 0.5), np.full(40, 1.0), np.tile([0.0, 1.0], 20)])
@pytest.mark.parametrize("groups", [np.zeros(40, int), np.arange(40)])
@pytest.mark.parametrize("relevant", [np.ones(40, bool), np.zeros(40, bool), np.tile([False, True], 20)])
def test_slope_of_extreme_scores_is_finite(scores, groups, relevant):
    bounds = slope_interval(scores, relevant, groups, 1)
    assert np.isfinite([bounds.low, bounds.high]).all()
    assert bounds.low <= bounds.high


@given(hits, st.randoms())
def test_a_fit_with_weights_equals_a_fit_to_repeated_hits(rows, random):
    scores, relevant = columns(rows)
    weights = np.array([random.randint(0, 3) for _ in rows])
    weights[0] += 1
    x, target = _logit(scores), np.where(relevant, 0.9, 0.1)
    weighted = _descend(x, target, (1.0, 0.0), weights=weights.astype(np.float64))
    repeated = _descend(np.repeat(x, weights), np.repeat(target, weights), (1.0, 0.0))
    logits = np.linspace(x[weights > 0].min(), x[weights > 0].max(), 5)
    assert weighted[0] * logits + weighted[1] == pytest.approx(repeated[0] * logits + repeated[1], abs=1e-3)


def naive_skill(probabilities, relevant):
    base = sum(relevant) / len(relevant)
    brier = sum((p - r) ** 2 for p, r in zip(probabilities, relevant, strict=True))
    return 1 - brier / sum((base - r) ** 2 for r in relevant)


many_hits = st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.integers(0, 9)), min_size=MIN_HITS, max_size=60)


@given(many_hits)
def test_skill_equals_the_naive_one(rows):
    probabilities, relevant, groups = (np.array(column) for column in zip(*rows, strict=True))
    found = skill(probabilities, relevant, groups, 50, 1)
    if relevant.all() or not relevant.any():
        assert found is None
        return
    assert found.hits == len(rows)
    assert found.score == pytest.approx(naive_skill(probabilities.tolist(), relevant.tolist()))
    assert found.interval.low <= found.interval.high
    assert found == skill(probabilities, relevant, groups, 50, 1)


def test_skill_of_true_probabilities_is_above_zero_and_that_of_the_base_rate_is_zero():
    scores, relevant = overconfident(2_000, 13)
    groups = np.arange(2_000) // 10
    found = skill(fit_platt(scores, relevant).apply(scores), relevant, groups, 200, 1)
    assert 0 < found.interval.low < found.score < found.interval.high < 1
    flat = skill(np.full(2_000, relevant.mean()), relevant, groups, 200, 1)
    assert (flat.score, flat.interval.low, flat.interval.high) == pytest.approx((0, 0, 0), abs=1e-9)
    perfect = skill(relevant.astype(float), relevant, groups, 200, 1)
    assert (perfect.score, perfect.interval.low, perfect.interval.high) == (1, 1, 1)


def test_skill_of_probabilities_of_other_hits_includes_zero_or_is_below():
    scores, relevant = overconfident(2_000, 14)
    shuffled = np.random.default_rng(14).permutation(scores)
    assert skill(shuffled, relevant, np.arange(2_000) // 10, 200, 1).interval.low < 0


def test_few_hits_or_hits_of_one_kind_have_no_skill():
    relevant = np.arange(MIN_HITS) % 2 == 0
    groups, probabilities = np.arange(MIN_HITS), np.full(MIN_HITS, 0.4)
    assert skill(probabilities, relevant, groups, 20, 1) is not None
    assert skill(probabilities[1:], relevant[1:], groups[1:], 20, 1) is None
    assert skill(probabilities[:0], relevant[:0], groups[:0], 20, 1) is None
    for value in (True, False):
        assert skill(probabilities, np.full(MIN_HITS, value), groups, 20, 1) is None


def measured(**changes):
    """A calibration with a probability to show."""
    useful = Skill(hits=100, score=0.4, interval=Interval(low=0.2, high=0.6))
    values = {
        "raw": Reliability(bins=(), expected_error=0.2),
        "map": Platt(temperature=2.0, bias=0.1),
        "calibrated": Reliability(bins=(), expected_error=MAX_ERROR),
        "slope": Interval(low=0.1, high=0.9),
        "skill": useful,
        "skill_below": useful,
    }
    return Calibration(**{**values, **changes})


USELESS = Skill(hits=100, score=0.1, interval=Interval(low=0.0, high=0.3))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"slope": None, "skill": None, "skill_below": None}, None),
        ({"map": None, "calibrated": None}, "there are no validation scans to calibrate on"),
        (
            {"map": Platt(temperature=1 / MIN_SLOPE, bias=0.0)},
            "on the validation scans, a higher score does not mean a more likely hit",
        ),
        (
            {"slope": Interval(low=0.0, high=0.9)},
            "there are too few validation scans to tell whether a higher score means a more likely hit",
        ),
        (
            {"calibrated": Reliability(bins=(), expected_error=0.0312)},
            "on the test scans, probabilities are wrong by 3.1 points on average",
        ),
        ({"skill": USELESS}, "on the test scans, probabilities say no more than the share of right hits"),
        (
            {"skill_below": USELESS},
            "on the test scans, probabilities below 0.9 say no more than the share of right hits",
        ),
    ],
)
def test_why_a_probability_is_withheld(changes, reason):
    calibration = measured(**changes)
    assert why_withheld(calibration) == reason
    decided = calibration.model_copy(update={"withheld": reason})
    assert decided.served == (None if reason else calibration.map)


def test_a_map_fitted_to_inverse_scores_is_withheld():
    scores, relevant = overconfident(2_000, 15)
    assert "does not mean" in why_withheld(measured(map=fit_platt(1 - scores, relevant)))


def test_a_calibration_of_an_earlier_version_is_served():
    old = measured(slope=None, skill=None, skill_below=None).model_dump(include={"raw", "map", "calibrated"})
    assert Calibration.model_validate(old).served == Platt(temperature=2.0, bias=0.1)
