import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.metrics.calibration import reliability
from mrcg.metrics.drift import HALF_LIFE, LEAST, ScoreDrift


def judged(scores):
    return reliability(scores, np.ones(len(scores), dtype=bool))


def scores(rng, low, high, count=20):
    return rng.uniform(low, high, count).astype(np.float32)


def drift_of(reference, searches):
    drift = ScoreDrift(judged(reference))
    for one in searches:
        drift.see(one)
    return drift


@given(st.integers(0, 1000), st.floats(0, 0.9))
def test_scores_like_those_that_were_judged_do_not_drift(seed, low):
    rng = np.random.default_rng(seed)
    drift = drift_of(scores(rng, low, 1, 5000), [scores(rng, low, 1) for _ in range(300)])
    assert 0 <= drift.index < 0.1


def test_others_do_and_the_farther_the_more():
    rng = np.random.default_rng(1)
    reference = scores(rng, 0.5, 1, 5000)
    found = [drift_of(reference, [scores(rng, low, low + 0.5) for _ in range(LEAST)]).index for low in (0.5, 0.3, 0.0)]
    assert found[0] < 0.1 < 0.25 < found[1] < found[2] < 20


def test_what_was_long_ago_is_forgotten():
    rng = np.random.default_rng(1)
    drift = drift_of(scores(rng, 0.5, 1, 5000), [scores(rng, 0, 0.5) for _ in range(LEAST)])
    assert drift.index > 1
    for _ in range(8 * HALF_LIFE):
        drift.see(scores(rng, 0.5, 1))
    assert drift.index < 0.1


@pytest.mark.parametrize("searches", [0, LEAST - 1])
def test_nothing_is_said_of_a_few_searches(searches):
    drift = drift_of(np.array([0.1, 1.0]), [np.array([0.5], np.float32)] * searches)
    assert drift.index is None
    drift.see(np.empty(0, np.float32))
    assert drift.index is None


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30), st.lists(st.floats(0, 1, width=32), min_size=1))
def test_it_is_a_finite_number_that_is_not_negative(reference, seen):
    drift = drift_of(np.array(reference), [np.array(seen, np.float32)] * LEAST)
    assert 0 <= drift.index < 100
