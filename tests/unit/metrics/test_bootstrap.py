import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.metrics import bootstrap
from mrcg.metrics.bootstrap import interval, intervals, paired, resampled_means

samples = st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abcdef")), min_size=1, max_size=30)


def naive_means(values, groups, resamples, seed):
    names = sorted(set(groups))
    draws = np.random.default_rng(seed).integers(0, len(names), (resamples, len(names)))
    means = []
    for drawn in draws:
        taken = [value for g in drawn for value, group in zip(values, groups, strict=True) if group == names[g]]
        means.append(sum(taken) / len(taken))
    return means


@given(samples, st.integers(0, 9))
def test_resampled_means_equal_the_naive_ones(rows, seed):
    values, groups = np.array([v for v, _ in rows]), [g for _, g in rows]
    means = resampled_means(values[:, None], groups, 20, seed)[:, 0]
    assert means == pytest.approx(naive_means(values, groups, 20, seed))


@given(samples)
def test_an_interval_lies_between_least_and_greatest_and_is_repeatable(rows):
    values, groups = np.array([v for v, _ in rows]), [g for _, g in rows]
    found = interval(values, groups, 100, 3)
    assert values.min() - 1e-12 <= found.low <= found.high <= values.max() + 1e-12
    assert found == interval(values, groups, 100, 3)
    assert intervals(np.stack([values, values], axis=1), groups, 100, 3) == (found, found)


@given(samples)
def test_the_order_of_the_queries_does_not_matter(rows):
    values, groups = np.array([v for v, _ in rows]), [g for _, g in rows]
    back = interval(values[::-1], groups[::-1], 50, 1)
    found = interval(values, groups, 50, 1)
    assert (back.low, back.high) == pytest.approx((found.low, found.high))


def test_blocks_draw_what_one_piece_draws(monkeypatch):
    values, groups = np.arange(12.0)[:, None], [str(i % 5) for i in range(12)]
    whole = resampled_means(values, groups, 40, 7)
    monkeypatch.setattr(bootstrap, "BLOCK", 30)
    assert (resampled_means(values, groups, 40, 7) == whole).all()


def test_one_group_and_no_query_have_no_spread():
    one = interval(np.array([0.2, 0.4]), ["a", "a"], 100, 1)
    assert (one.low, one.high) == pytest.approx((0.3, 0.3))
    none = paired(np.empty(0), np.empty(0), [], 100, 1)
    assert (none.mean, none.low, none.high) == (0.0, 0.0, 0.0)


def test_pairs_see_a_small_gain_that_each_side_hides():
    draws = np.random.default_rng(5)
    before = draws.random(300)
    after = before + 0.01 + 0.01 * draws.normal(size=300)
    groups = [str(i) for i in range(300)]
    gain = paired(before, after, groups, 500, 1)
    assert 0 < gain.low < gain.mean < gain.high
    assert gain.mean == pytest.approx((after - before).mean())
    assert interval(before, groups, 500, 1).high > interval(after, groups, 500, 1).low


def test_intervals_cover_the_truth_about_19_times_in_20():
    """Groups of 1 to 5 equal queries; single queries resampled would cover far less often."""
    clustered = single = 0
    for trial in range(200):
        draws = np.random.default_rng(trial)
        sizes = draws.integers(1, 6, 60)
        values = np.repeat(draws.normal(size=60), sizes)
        groups = [str(g) for g in np.repeat(np.arange(60), sizes)]
        found = interval(values, groups, 200, trial)
        clustered += found.low <= 0 <= found.high
        alone = interval(values, [str(i) for i in range(len(values))], 200, trial)
        single += alone.low <= 0 <= alone.high
    assert 0.89 <= clustered / 200 <= 0.99
    assert single < clustered - 20
