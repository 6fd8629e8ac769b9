"""Percentile bootstrap of means over queries that resamples whole groups.

Queries of one group (a patient, or near-duplicates of one scan) tend to succeed or fail together, so resampling
single queries gives intervals that are too narrow. Each resample draws as many groups as exist, with replacement,
and uses all queries of each (the cluster bootstrap: Davison and Hinkley, Bootstrap Methods and their Application,
§3.8).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mrcg.frozen import Frozen

#: Confidence level: the share of resampled means inside an interval.
LEVEL = 0.95
#: Maximum number of values in memory at once while resampling (32 MB).
BLOCK = 2**22

Values = npt.NDArray[np.float64]


class Interval(Frozen):
    """The 95 % interval of a mean, in the unit of the values."""

    low: float
    high: float


class Gain(Interval):
    """The mean of after minus before, with its 95 % interval. If the interval contains 0, the gain may be chance."""

    mean: float


def interval(values_q: Values, groups: Sequence[str], resamples: int, seed: int) -> Interval:
    """Return the 95 % interval of the mean of one value per query.

    Args:
        values_q: (queries,) values.
        groups: group of each query; queries of one group are drawn together. With a single group the interval has
            width 0.
        resamples: number of bootstrap resamples.
        seed: equal seeds give equal intervals.
    """
    return intervals(values_q[:, None], groups, resamples, seed)[0]


def intervals(values_qm: Values, groups: Sequence[str], resamples: int, seed: int) -> tuple[Interval, ...]:
    """Return one interval per column of (queries, m) values, all from the same resamples; [0, 0] without queries."""
    if not len(values_qm):
        return tuple(Interval(low=0.0, high=0.0) for _ in values_qm.T)
    means_rm = resampled_means(values_qm, groups, resamples, seed)
    low_m: list[float] = np.quantile(means_rm, (1 - LEVEL) / 2, axis=0).tolist()
    high_m: list[float] = np.quantile(means_rm, (1 + LEVEL) / 2, axis=0).tolist()
    return tuple(Interval(low=low, high=high) for low, high in zip(low_m, high_m, strict=True))


def paired(before_q: Values, after_q: Values, groups: Sequence[str], resamples: int, seed: int) -> Gain:
    """Return the mean of ``after - before`` over the same queries, with its interval.

    The differences are resampled, not each side: what makes a query easy or hard for both sides cancels out.
    """
    assert before_q.shape == after_q.shape
    gain_q = after_q - before_q
    bounds = interval(gain_q, groups, resamples, seed)
    return Gain(mean=float(gain_q.mean()) if len(gain_q) else 0.0, low=bounds.low, high=bounds.high)


def resampled_means(values_qm: Values, groups: Sequence[str], resamples: int, seed: int) -> Values:
    """Return the (resamples, m) means of the columns of (queries, m) values, with groups drawn with replacement."""
    assert len(values_qm) == len(groups) > 0
    _, group_q = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    count = int(group_q.max()) + 1
    # The sums and the size of each group are enough for a resampled mean.
    columns = [np.bincount(group_q, weights=column, minlength=count) for column in values_qm.T]
    sums_gm = np.stack([*columns, np.bincount(group_q, minlength=count).astype(np.float64)], axis=1)
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK // sums_gm.size)
    means: list[Values] = []
    for start in range(0, resamples, block):
        drawn_rg = generator.integers(0, count, (min(block, resamples - start), count))
        totals = sums_gm[drawn_rg].sum(axis=1)
        means.append(totals[:, :-1] / totals[:, -1:])
    return np.concatenate(means)
