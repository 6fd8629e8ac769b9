"""Drift between the scores a service returns and the scores its release was evaluated on.

It is the population stability index of two histograms, Σ (p - q) ln(p / q) over their bins (Siddiqi, Credit Risk
Scorecards, 2006). As a rule of thumb, below 0.1 nothing has changed, and above 0.25 much has.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mrcg.metrics.calibration import BINS, Reliability

#: Number of searches after which the weight of a search has halved.
HALF_LIFE = 500
#: Minimum number of searches before an index is reported.
MIN_SEARCHES = 50
#: Minimum share of a bin: an empty bin would make the index infinite.
_MIN_SHARE = 1e-3

Histogram = npt.NDArray[np.float64]


class ScoreDrift:
    """Compares recent scores with those of the report's test part; each search has the same weight.

    Args:
        reference: reliability of the raw scores in the report.
    """

    def __init__(self, reference: Reliability) -> None:
        expected = np.zeros(BINS)
        for score_bin in reference.bins:
            expected[round(score_bin.low * BINS)] = score_bin.count
        self._expected = _shares(expected)
        self._observed = np.zeros(BINS)
        self._searches = 0

    def observe(self, scores_n: npt.NDArray[np.float32]) -> None:
        """Add the (n,) node scores of one search, each in [0, 1]."""
        if len(scores_n):
            bins_n = np.clip((scores_n * BINS).astype(np.int64), 0, BINS - 1)
            shares = np.bincount(bins_n, minlength=BINS) / len(scores_n)
            self._observed = self._observed * 0.5 ** (1 / HALF_LIFE) + shares
            self._searches += 1

    @property
    def index(self) -> float | None:
        """The population stability index; None before ``MIN_SEARCHES`` searches."""
        if self._searches < MIN_SEARCHES:
            return None
        observed = _shares(self._observed)
        return float(((observed - self._expected) * np.log(observed / self._expected)).sum())


def _shares(counts: Histogram) -> Histogram:
    floored = np.maximum(counts / max(counts.sum(), 1e-12), _MIN_SHARE)
    shares: Histogram = floored / floored.sum()
    return shares
