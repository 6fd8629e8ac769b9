"""Whether the scores that are served still look like those that a release was judged by.

The population stability index of two histograms, Σ (p - q) ln(p / q) over their bins (Siddiqi, Credit Risk Scorecards,
2006): as a rule, nothing has changed below 0.1, and much above 0.25.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mrcg.metrics.calibration import BINS, Reliability

#: Searches after which one counts half as much.
HALF_LIFE = 500
#: Searches before which nothing is said.
LEAST = 50
#: What a bin has at least: an empty one would make the index infinite.
_FLOOR = 1e-3

Histogram = npt.NDArray[np.float64]


class ScoreDrift:
    """Scores of late beside those of the report's test part. Each search counts alike, however many nodes it has.

    Args:
        reference: the report's reliability of the scores as they are.
    """

    def __init__(self, reference: Reliability) -> None:
        expected = np.zeros(BINS)
        for one in reference.bins:
            expected[round(one.low * BINS)] = one.count
        self._expected = _shares(expected)
        self._seen = np.zeros(BINS)
        self._searches = 0

    def see(self, scores_n: npt.NDArray[np.float32]) -> None:
        """Count the (n,) scores of one search's nodes, each in [0, 1]."""
        if len(scores_n):
            places = np.clip((scores_n * BINS).astype(np.int64), 0, BINS - 1)
            self._seen = self._seen * 0.5 ** (1 / HALF_LIFE) + np.bincount(places, minlength=BINS) / len(scores_n)
            self._searches += 1

    @property
    def index(self) -> float | None:
        """The population stability index; None while too few searches were seen."""
        if self._searches < LEAST:
            return None
        seen = _shares(self._seen)
        return float(((seen - self._expected) * np.log(seen / self._expected)).sum())


def _shares(counts: Histogram) -> Histogram:
    floored = np.maximum(counts / max(counts.sum(), 1e-12), _FLOOR)
    shares: Histogram = floored / floored.sum()
    return shares
