"""Calibration: whether 8 of 10 hits with a score of 0.8 are relevant.

Reliability bins and expected calibration error follow Guo et al., "On Calibration of Modern Neural Networks"
(2017). The map from scores to probabilities is Platt scaling (1999) with smoothed targets: a temperature and a bias
on the logit of the score. It never changes the order of hits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

BINS = 10
#: Scores are clipped to this distance from 0 and 1, whose logits are infinite.
EPSILON = 1e-6
#: Minimum slope: a flat map would lose the reranker's order, and a falling one would reverse it.
MIN_SLOPE = 1e-3
#: Maximum number of Newton steps.
MAX_STEPS = 100

Floats = npt.NDArray[np.floating]
Flags = npt.NDArray[np.bool_]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Bin(_Frozen):
    """Hits whose scores lie in [low, high); the last bin includes 1. ``relevant`` is the share of relevant hits."""

    low: float
    high: float
    count: int
    mean_score: float
    relevant: float


class Reliability(_Frozen):
    """The non-empty bins and the expected calibration error: the mean of |score - relevant| weighted by count."""

    bins: tuple[Bin, ...]
    expected_error: float


class Platt(_Frozen):
    """Probability = sigmoid(logit(score) / temperature + bias)."""

    temperature: float
    bias: float

    def apply(self, scores: Floats) -> npt.NDArray[np.float64]:
        """Return probabilities of relevance for scores in [0, 1] of any shape; the order stays the same."""
        return _sigmoid(_logit(scores) / self.temperature + self.bias)


class Calibration(_Frozen):
    """Reliability of the test scores: raw, and after the map fitted on the validation part (None without one)."""

    raw: Reliability
    map: Platt | None
    calibrated: Reliability | None


def reliability(scores: Floats, relevant: Flags) -> Reliability:
    """Return the reliability of hits in bins of equal width.

    Args:
        scores: (n,) in [0, 1].
        relevant: (n,) whether each hit is relevant.
    """
    bin_of_hit = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(bin_of_hit, minlength=BINS)
    score_sums = np.bincount(bin_of_hit, weights=scores, minlength=BINS)
    relevant_counts = np.bincount(bin_of_hit, weights=relevant.astype(np.float64), minlength=BINS)
    bins = tuple(
        Bin(
            low=b / BINS,
            high=(b + 1) / BINS,
            count=int(counts[b]),
            mean_score=float(score_sums[b] / counts[b]),
            relevant=float(relevant_counts[b] / counts[b]),
        )
        for b in range(BINS)
        if counts[b]
    )
    error = sum(b.count * abs(b.mean_score - b.relevant) for b in bins) / max(1, len(scores))
    return Reliability(bins=bins, expected_error=error)


def fit_platt(scores: Floats, relevant: Flags) -> Platt | None:
    """Fit temperature and bias by maximum likelihood; None without scores.

    Uses Newton's method with step halving. All sums are numpy's, whose order does not depend on the number of threads.

    Args:
        scores: (n,) in [0, 1], of queries that are not in the test part.
        relevant: (n,) whether each hit is relevant.
    """
    if not len(scores):
        return None
    positives, negatives = int(relevant.sum()), int((~relevant).sum())
    # Platt's smoothed targets: if all hits are of one kind, targets of 0 and 1 would need an infinite bias.
    target = np.where(relevant, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    x = _logit(scores)
    slope, bias = _descend(x, target, 1.0, fixed=False)
    if slope < MIN_SLOPE:  # the loss is convex: if the free optimum is below the bound, the best slope is the bound
        slope, bias = _descend(x, target, MIN_SLOPE, fixed=True)
    return Platt(temperature=1 / slope, bias=bias)


def _descend(x: Floats, target: Floats, slope: float, fixed: bool) -> tuple[float, float]:
    """Minimise the loss from a start slope and return slope and bias; ``fixed`` changes the bias only."""
    bias = 0.0
    loss = _loss(slope * x + bias, target)
    for _ in range(MAX_STEPS):
        d_slope, d_bias = _newton_step(x, _sigmoid(slope * x + bias), target, fixed)
        size, new_loss = 1.0, np.inf
        while size > 1e-8 and (new_loss := _loss((slope + size * d_slope) * x + bias + size * d_bias, target)) >= loss:
            size /= 2
        if new_loss >= loss:
            break
        slope, bias = slope + size * d_slope, bias + size * d_bias
        decrease, loss = loss - new_loss, new_loss
        if decrease < 1e-12:
            break
    return slope, bias


def _newton_step(x: Floats, p: Floats, target: Floats, fixed: bool) -> tuple[float, float]:
    """Return the change of slope and bias; the ridge keeps it finite when all scores are equal."""
    ridge = 1e-9
    residual, weight = p - target, p * (1 - p)
    g_slope, g_bias = float((residual * x).mean()), float(residual.mean())
    h_ss, h_sb, h_bb = float((weight * x * x).mean()) + ridge, float((weight * x).mean()), float(weight.mean()) + ridge
    if fixed:
        return 0.0, -g_bias / h_bb
    determinant = h_ss * h_bb - h_sb * h_sb
    return -(h_bb * g_slope - h_sb * g_bias) / determinant, -(h_ss * g_bias - h_sb * g_slope) / determinant


def _loss(logits: Floats, target: Floats) -> float:
    """Return the mean cross-entropy, log(1 + e^z) - t z."""
    return float((np.logaddexp(0.0, logits) - target * logits).mean())


def _logit(scores: Floats) -> npt.NDArray[np.float64]:
    clipped = np.clip(scores.astype(np.float64), EPSILON, 1 - EPSILON)
    out: npt.NDArray[np.float64] = np.log(clipped) - np.log1p(-clipped)
    return out


def _sigmoid(logits: Floats) -> npt.NDArray[np.float64]:
    out: npt.NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -logits))
    return out
