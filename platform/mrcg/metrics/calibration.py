"""Calibration: whether 8 of 10 hits with a score of 0.8 are relevant.

Reliability bins and expected calibration error follow Guo et al., "On Calibration of Modern Neural Networks"
(2017). The map from scores to probabilities is Platt scaling (1999) with smoothed targets: a temperature and a bias
on the logit of the score. It never changes the order of hits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mrcg.frozen import Frozen
from mrcg.metrics.bootstrap import LEVEL, Interval, resampled_means

BINS = 10
#: Hits with a lower probability are those that a reader has to doubt.
UNSURE = 0.9
#: Largest expected calibration error with which a probability is shown.
MAX_ERROR = 0.03
#: Resamples for the interval of the slope: each is a fit of its own.
SLOPE_RESAMPLES = 400
#: Hits that slopes and skills are computed of, at most; of more, whole groups are drawn.
MAX_HITS = 100_000
#: Fewest hits that a skill score is computed of.
MIN_HITS = 20
#: Scores are clipped to this distance from 0 and 1, whose logits are infinite.
EPSILON = 1e-6
#: Minimum slope: a flat map would lose the reranker's order, and a falling one would reverse it.
MIN_SLOPE = 1e-3
#: Maximum number of Newton steps.
MAX_STEPS = 100

Floats = npt.NDArray[np.floating]
Flags = npt.NDArray[np.bool_]


class Bin(Frozen):
    """Hits whose scores lie in [low, high); the last bin includes 1. ``relevant`` is the share of relevant hits."""

    low: float
    high: float
    count: int
    mean_score: float
    relevant: float


class Reliability(Frozen):
    """The non-empty bins and the expected calibration error: the mean of |score - relevant| weighted by count."""

    bins: tuple[Bin, ...]
    expected_error: float


class Platt(Frozen):
    """Probability = sigmoid(logit(score) / temperature + bias)."""

    temperature: float
    bias: float

    def apply(self, scores: Floats) -> npt.NDArray[np.float64]:
        """Return probabilities of relevance for scores in [0, 1] of any shape; the order stays the same."""
        return _sigmoid(_logit(scores) / self.temperature + self.bias)


class Skill(Frozen):
    """Brier skill score of some hits against their base rate: 1 is perfect, 0 no better than the base rate."""

    hits: int
    score: float
    interval: Interval


class Calibration(Frozen):
    """Reliability of the test scores: raw, and after the map fitted on the validation part (None without one).

    Attributes:
        raw: of the scores as they are.
        map: from scores to probabilities, fitted on the validation part; None without one.
        calibrated: of the probabilities.
        slope: 95 % bootstrap interval of the map's slope, 1 / temperature.
        skill, skill_below: of the probabilities of all hits, and of those below ``UNSURE``.
        withheld: why no probability is shown; None where it is, and in reports of earlier versions of MRCG.
    """

    raw: Reliability
    map: Platt | None
    calibrated: Reliability | None
    slope: Interval | None = None
    skill: Skill | None = None
    skill_below: Skill | None = None
    withheld: str | None = None

    @property
    def served(self) -> Platt | None:
        """The map that a release serves; None where the score says nothing about probability."""
        return None if self.withheld is not None else self.map


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


def slope_interval(scores: Floats, relevant: Flags, groups_n: npt.NDArray[np.int64], seed: int) -> Interval:
    """Return the 95 % bootstrap interval of the slope of Platt's map, which may be negative.

    Args:
        scores: (n,) in [0, 1].
        relevant: (n,) whether each hit is relevant.
        groups_n: number of the group of each hit's query; queries are resampled by whole groups.
        seed: equal seeds give equal intervals.
    """
    drawn = _drawn_hits(groups_n, seed)
    scores, relevant = scores[drawn], relevant[drawn]
    # A query without hits leaves a gap among the numbers, and a resample of gaps has nothing to fit.
    names, groups_n = np.unique(groups_n[drawn], return_inverse=True)
    target, x, count = _targets(relevant), _logit(scores), len(names)
    drawn_rg = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), SLOPE_RESAMPLES)
    # From the fit of all hits, each resample takes a few steps.
    start = _descend(x, target, (1.0, 0.0))
    slopes = [_descend(x, target, start, weights=drawn_g[groups_n].astype(np.float64))[0] for drawn_g in drawn_rg]
    low, high = np.quantile(slopes, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return Interval(low=low, high=high)


def skill(
    probabilities: Floats, relevant: Flags, groups: npt.NDArray[np.int64], resamples: int, seed: int
) -> Skill | None:
    """Return the Brier skill score of hits, with an interval by groups; None for too few hits, or of one kind only.

    Args:
        probabilities: (n,) of relevance.
        relevant: (n,) whether each hit is relevant.
        groups: (n,) number of the group of each hit's query, from 0.
        resamples: of the groups.
        seed: equal seeds give equal intervals.
    """
    drawn = _drawn_hits(groups, seed)
    probabilities, relevant, groups = probabilities[drawn], relevant[drawn], groups[drawn]
    base = float(relevant.mean()) if len(relevant) else 0.0
    if len(relevant) < MIN_HITS or base in (0.0, 1.0):
        return None
    errors_n2 = np.stack([np.square(probabilities - relevant), np.square(base - relevant)], axis=1)
    means_r2 = resampled_means(errors_n2, groups.astype(str).tolist(), resamples, seed)
    low, high = np.quantile(
        1 - means_r2[:, 0] / np.maximum(means_r2[:, 1], EPSILON), [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    ).tolist()
    brier, reference = errors_n2.mean(axis=0).tolist()
    return Skill(hits=len(relevant), score=1 - brier / reference, interval=Interval(low=low, high=high))


def _drawn_hits(groups_n: npt.NDArray[np.int64], seed: int) -> Flags:
    """Return the mask of the hits of groups drawn at random, at most ``MAX_HITS``; all if there are no more."""
    if len(groups_n) <= MAX_HITS:
        return np.ones(len(groups_n), dtype=bool)
    names, codes_n = np.unique(groups_n, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    kept = order[np.bincount(codes_n)[order].cumsum() <= MAX_HITS]
    mask: Flags = np.isin(codes_n, kept)
    return mask


def why_withheld(calibration: Calibration) -> str | None:
    """Return why a release must not show probabilities, None if it may.

    The map comes from the validation part; the test part can only withhold it.
    """
    fitted, measured = calibration.map, calibration.calibrated
    if fitted is None or measured is None:
        return "there are no validation scans to calibrate on"
    if fitted.temperature >= 1 / MIN_SLOPE:
        return "on the validation scans, a higher score does not mean a more likely hit"
    if calibration.slope is not None and calibration.slope.low <= 0:
        return "there are too few validation scans to tell whether a higher score means a more likely hit"
    if measured.expected_error > MAX_ERROR:
        return f"on the test scans, probabilities are wrong by {100 * measured.expected_error:.1f} points on average"
    for found, which in ((calibration.skill, ""), (calibration.skill_below, f" below {UNSURE:g}")):
        if found is not None and found.interval.low <= 0:
            return f"on the test scans, probabilities{which} say no more than the share of right hits"
    return None


def fit_platt(scores: Floats, relevant: Flags) -> Platt | None:
    """Fit temperature and bias by maximum likelihood; None without scores.

    Uses Newton's method with step halving: on two unknowns it takes a third of the time of ``scipy.optimize.minimize``
    and ends nearer to the optimum, and the bootstrap fits hundreds of times. All sums are numpy's, whose order does not
    depend on the number of threads.

    Args:
        scores: (n,) in [0, 1], of queries that are not in the test part.
        relevant: (n,) whether each hit is relevant.
    """
    if not len(scores):
        return None
    target, x = _targets(relevant), _logit(scores)
    slope, bias = _descend(x, target, (1.0, 0.0))
    if slope < MIN_SLOPE:  # the loss is convex: if the free optimum is below the bound, the best slope is the bound
        slope, bias = _descend(x, target, (MIN_SLOPE, 0.0), fixed=True)
    return Platt(temperature=1 / slope, bias=bias)


def _targets(relevant: Flags) -> npt.NDArray[np.float64]:
    """Return Platt's smoothed targets: if all hits are of one kind, 0 and 1 would need an infinite bias."""
    positives, negatives = int(relevant.sum()), int((~relevant).sum())
    return np.where(relevant, (positives + 1) / (positives + 2), 1 / (negatives + 2))


def _descend(
    x: Floats, target: Floats, start: tuple[float, float], fixed: bool = False, weights: Floats | None = None
) -> tuple[float, float]:
    """Minimise the loss from a start and return slope and bias; ``fixed`` changes the bias only."""
    (slope, bias), weights = start, np.ones(len(x)) if weights is None else weights / weights.mean()
    loss = _loss(slope * x + bias, target, weights)
    for _ in range(MAX_STEPS):
        d_slope, d_bias = _newton_step(x, _sigmoid(slope * x + bias), target, weights, fixed)
        size, new_loss = 1.0, np.inf
        while size > 1e-8:
            new_loss = _loss((slope + size * d_slope) * x + bias + size * d_bias, target, weights)
            if new_loss < loss:
                break
            size /= 2
        if new_loss >= loss:
            break
        slope, bias = slope + size * d_slope, bias + size * d_bias
        decrease, loss = loss - new_loss, new_loss
        if decrease < 1e-12:
            break
    return slope, bias


def _newton_step(x: Floats, p: Floats, target: Floats, weights: Floats, fixed: bool) -> tuple[float, float]:
    """Return the change of slope and bias; the ridge keeps it finite when all scores are equal."""
    ridge = 1e-9
    residual, weight = weights * (p - target), weights * p * (1 - p)
    g_slope, g_bias = float((residual * x).mean()), float(residual.mean())
    h_ss, h_sb, h_bb = float((weight * x * x).mean()) + ridge, float((weight * x).mean()), float(weight.mean()) + ridge
    if fixed:
        return 0.0, -g_bias / h_bb
    determinant = h_ss * h_bb - h_sb * h_sb
    return -(h_bb * g_slope - h_sb * g_bias) / determinant, -(h_ss * g_bias - h_sb * g_slope) / determinant


def _loss(logits: Floats, target: Floats, weights: Floats) -> float:
    """Return the weighted mean cross-entropy, log(1 + e^z) - t z."""
    return float((weights * (np.logaddexp(0.0, logits) - target * logits)).mean())


def _logit(scores: Floats) -> npt.NDArray[np.float64]:
    clipped = np.clip(scores.astype(np.float64), EPSILON, 1 - EPSILON)
    out: npt.NDArray[np.float64] = np.log(clipped) - np.log1p(-clipped)
    return out


def _sigmoid(logits: Floats) -> npt.NDArray[np.float64]:
    out: npt.NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -logits))
    return out
