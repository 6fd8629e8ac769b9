"""Calibration: does a score of 0.8 mean that 8 of 10 such hits are relevant?

Reliability bins and expected calibration error as in Guo et al., "On Calibration of Modern Neural
Networks" (2017). The map from scores to probabilities is Platt's (1999), with his smoothed targets:
a temperature and a bias on the score's logit, so it never changes an order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

BINS = 10
#: Scores are kept this far from 0 and 1, whose logits are infinite.
EPSILON = 1e-6
#: The least slope: a flat or falling map would lose or turn the reranker's order.
MIN_SLOPE = 1e-3
STEPS = 100

Floats = npt.NDArray[np.floating]
Flags = npt.NDArray[np.bool_]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Bin(_Frozen):
    """Hits whose scores lie in [low, high) (the last bin has 1 in it)."""

    low: float
    high: float
    count: int
    mean_score: float
    relevant: float


class Reliability(_Frozen):
    """Bins that have hits, and the expected calibration error: their mean |score - relevant|, weighted by count."""

    bins: tuple[Bin, ...]
    expected_error: float


class Platt(_Frozen):
    """Probability = sigmoid(logit(score) / temperature + bias)."""

    temperature: float
    bias: float

    def apply(self, scores: Floats) -> npt.NDArray[np.float64]:
        """Probabilities of relevance of scores in [0, 1], any shape; equal order."""
        return _sigmoid(_logit(scores) / self.temperature + self.bias)


class Calibration(_Frozen):
    """Of the test part's scores, as they are and after the map that the validation part gave (if there is one)."""

    raw: Reliability
    map: Platt | None
    calibrated: Reliability | None


def reliability(scores: Floats, relevant: Flags) -> Reliability:
    """Reliability of (n,) scores in [0, 1] of (n,) hits in bins of equal width."""
    place = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    score = np.bincount(place, weights=scores, minlength=BINS)
    hits = np.bincount(place, weights=relevant.astype(np.float64), minlength=BINS)
    bins = tuple(
        Bin(
            low=b / BINS,
            high=(b + 1) / BINS,
            count=int(count[b]),
            mean_score=float(score[b] / count[b]),
            relevant=float(hits[b] / count[b]),
        )
        for b in range(BINS)
        if count[b]
    )
    error = sum(b.count * abs(b.mean_score - b.relevant) for b in bins) / max(1, len(scores))
    return Reliability(bins=bins, expected_error=error)


def fit_platt(scores: Floats, relevant: Flags) -> Platt | None:
    """Temperature and bias of the greatest likelihood; None without scores.

    Args:
        scores: (n,) in [0, 1], of queries that were not tested on.
        relevant: (n,) what the scores should have told.

    Newton's method with halved steps; sums are numpy's own, whose order does not depend on threads.
    """
    if not len(scores):
        return None
    right, wrong = int(relevant.sum()), int((~relevant).sum())
    # Platt's targets: without them one class alone would ask for an infinite bias.
    target = np.where(relevant, (right + 1) / (right + 2), 1 / (wrong + 2))
    x = _logit(scores)
    slope, bias = _descend(x, target, 1.0, fixed=False)
    if slope < MIN_SLOPE:  # the loss is convex: where the free optimum lies beyond the bound, the best is on it
        slope, bias = _descend(x, target, MIN_SLOPE, fixed=True)
    return Platt(temperature=1 / slope, bias=bias)


def _descend(x: Floats, target: Floats, slope: float, fixed: bool) -> tuple[float, float]:
    """Slope and bias of the least loss, from a slope; ``fixed`` moves the bias alone."""
    bias = 0.0
    loss = _loss(slope * x + bias, target)
    for _ in range(STEPS):
        d_slope, d_bias = _newton_step(x, _sigmoid(slope * x + bias), target, fixed)
        size, better = 1.0, np.inf
        while size > 1e-8 and (better := _loss((slope + size * d_slope) * x + bias + size * d_bias, target)) >= loss:
            size /= 2
        if better >= loss:
            break
        slope, bias = slope + size * d_slope, bias + size * d_bias
        gained, loss = loss - better, better
        if gained < 1e-12:
            break
    return slope, bias


def _newton_step(x: Floats, p: Floats, target: Floats, fixed: bool) -> tuple[float, float]:
    """Change of slope and bias; the ridge keeps it finite where all scores are equal."""
    ridge = 1e-9
    wrong, weight = p - target, p * (1 - p)
    g_slope, g_bias = float((wrong * x).mean()), float(wrong.mean())
    h_ss, h_sb, h_bb = float((weight * x * x).mean()) + ridge, float((weight * x).mean()), float(weight.mean()) + ridge
    if fixed:
        return 0.0, -g_bias / h_bb
    determinant = h_ss * h_bb - h_sb * h_sb
    return -(h_bb * g_slope - h_sb * g_bias) / determinant, -(h_ss * g_bias - h_sb * g_slope) / determinant


def _loss(logits: Floats, target: Floats) -> float:
    """Mean cross-entropy: log(1 + e^z) - t z."""
    return float((np.logaddexp(0.0, logits) - target * logits).mean())


def _logit(scores: Floats) -> npt.NDArray[np.float64]:
    clipped = np.clip(scores.astype(np.float64), EPSILON, 1 - EPSILON)
    out: npt.NDArray[np.float64] = np.log(clipped) - np.log1p(-clipped)
    return out


def _sigmoid(logits: Floats) -> npt.NDArray[np.float64]:
    out: npt.NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -logits))
    return out
