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
        values_drawn = [value for g in drawn for value, group in zip(values, groups, strict=True) if group == names[g]]
        means.append(sum(values_drawn) / len(values_drawn))
    return means


@given(samples, st.integers(0, 9))
def test_resampled_means_equal_the_naive_ones(rows, seed):
    values, groups = np.array([v for v, _ in rows]), [g for _, g in rows]
    means = resampled_means(values[:, None], groups, 20, seed)[:, 0]
    assert means == pytest.approx(naive_means(values, groups, 20, seed))


@given(samples)
def test_interval_lies_between_minimum_and_maximum_and_is_repeatable(rows):
    values, groups = np.array([v for v, _ in rows]), [g for _, g in rows]
    bounds = interval(values, groups, 100, 3)
    assert values.min() - 1e-12 <= bounds.low <= bounds.high <= values.max() + 1e-12
    assert bounds == interval(values, groups, 100, 3)
    assert intervals(np.stack([values, values], axis=1), groups, 100, 3) == (bounds, bounds)


@given(samples)
def test_order_of_the_queries_does_not_matter(rows):
    values, groups = np.array([v for v, _ in rows]), [g for _, g in rows]
    reverse = interval(values[::-1], groups[::-1], 50, 1)
    bounds = interval(values, groups, 50, 1)
    assert (reverse.low, reverse.high) == pytest.approx((bounds.low, bounds.high))


def test_block_size_does_not_change_the_means(monkeypatch):
    values, groups = np.arange(12.0)[:, None], [str(i % 5) for i in range(12)]
    means = resampled_means(values, groups, 40, 7)
    monkeypatch.setattr(bootstrap, "BLOCK", 30)
    assert (resampled_means(values, groups, 40, 7) == means).all()


def test_one_group_or_no_query_gives_an_interval_of_width_zero():
    single = interval(np.array([0.2, 0.4]), ["a", "a"], 100, 1)
    assert (single.low, single.high) == pytest.approx((0.3, 0.3))
    empty = paired(np.empty(0), np.empty(0), [], 100, 1)
    assert (empty.mean, empty.low, empty.high) == (0.0, 0.0, 0.0)


def test_paired_gain_is_found_where_the_intervals_of_both_sides_overlap():
    draws = np.random.default_rng(5)
    before = draws.random(300)
    after = before + 0.01 + 0.01 * draws.normal(size=300)
    groups = [str(i) for i in range(300)]
    gain = paired(before, after, groups, 500, 1)
    assert 0 < gain.low < gain.mean < gain.high
    assert gain.mean == pytest.approx((after - before).mean())
    assert interval(before, groups, 500, 1).high > interval(after, groups, 500, 1).low


def test_intervals_cover_the_true_mean_about_19_times_in_20():
    """Groups have 1 to 5 equal queries; resampling single queries covers the true mean far less often."""
    clustered = single = 0
    for trial in range(200):
        draws = np.random.default_rng(trial)
        sizes = draws.integers(1, 6, 60)
        values = np.repeat(draws.normal(size=60), sizes)
        groups = [str(g) for g in np.repeat(np.arange(60), sizes)]
        bounds = interval(values, groups, 200, trial)
        clustered += bounds.low <= 0 <= bounds.high
        ungrouped = interval(values, [str(i) for i in range(len(values))], 200, trial)
        single += ungrouped.low <= 0 <= ungrouped.high
    assert 0.89 <= clustered / 200 <= 0.99
    assert single < clustered - 20
