import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.metrics.calibration import reliability
from mrcg.metrics.drift import HALF_LIFE, MIN_SEARCHES, ScoreDrift


def reference_of(scores):
    return reliability(scores, np.ones(len(scores), dtype=bool))


def scores(rng, low, high, count=20):
    return rng.uniform(low, high, count).astype(np.float32)


def drift_of(reference, searches):
    drift = ScoreDrift(reference_of(reference))
    for search in searches:
        drift.observe(search)
    return drift


@given(st.integers(0, 1000), st.floats(0, 0.9))
def test_scores_like_the_reference_do_not_drift(seed, low):
    rng = np.random.default_rng(seed)
    drift = drift_of(scores(rng, low, 1, 5000), [scores(rng, low, 1) for _ in range(300)])
    assert 0 <= drift.index < 0.1


def test_drift_grows_with_the_difference():
    rng = np.random.default_rng(1)
    reference = scores(rng, 0.5, 1, 5000)
    indexes = [
        drift_of(reference, [scores(rng, low, low + 0.5) for _ in range(MIN_SEARCHES)]).index for low in (0.5, 0.3, 0.0)
    ]
    assert indexes[0] < 0.1 < 0.25 < indexes[1] < indexes[2] < 20


def test_old_searches_lose_their_weight():
    rng = np.random.default_rng(1)
    drift = drift_of(scores(rng, 0.5, 1, 5000), [scores(rng, 0, 0.5) for _ in range(MIN_SEARCHES)])
    assert drift.index > 1
    for _ in range(8 * HALF_LIFE):
        drift.observe(scores(rng, 0.5, 1))
    assert drift.index < 0.1


@pytest.mark.parametrize("searches", [0, MIN_SEARCHES - 1])
def test_no_index_for_few_searches(searches):
    drift = drift_of(np.array([0.1, 1.0]), [np.array([0.5], np.float32)] * searches)
    assert drift.index is None
    drift.observe(np.empty(0, np.float32))
    assert drift.index is None


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30), st.lists(st.floats(0, 1, width=32), min_size=1))
def test_index_is_finite_and_not_negative(reference, observed):
    drift = drift_of(np.array(reference), [np.array(observed, np.float32)] * MIN_SEARCHES)
    assert 0 <= drift.index < 100
