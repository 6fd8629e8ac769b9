"""Graded likeness: whether the hits that are most like the query come first (docs/method.md#graded-likeness).

MAP knows two grades, right and wrong class. Here a hit has a grade, and nDCG compares the order of the hits with the
best order that the gallery allows (Järvelin and Kekäläinen, ACM TOIS 20 (2002); gains 2^grade - 1 as in Burges et al.,
ICML 2005).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mrcg.frozen import Frozen
from mrcg.metrics.bootstrap import Gain, Interval

#: Hits that count.
HITS = 10

Grades = npt.NDArray[np.int64]


class Ndcg(Frozen):
    """Mean nDCG@10 of one order, with its 95 % interval."""

    mean: float
    interval: Interval


class GradedLikeness(Frozen):
    """nDCG@10 of each order, and what the served order gains over the ANN order.

    Attributes:
        known: test queries whose lesion is known.
        queries: those of them that were graded.
        chance: of the same hits in random order.
    """

    known: int
    queries: int
    chance: Ndcg
    ann: Ndcg
    score: Ndcg
    served: Ndcg
    served_gain: Gain


def ndcg(grades_qk: Grades, ideal_qk: Grades) -> npt.NDArray[np.float64]:
    """Return the nDCG of each query, (q,); 0 where no scan of the gallery has a grade above 0.

    Args:
        grades_qk: (q, k) grades of the first hits, best hit first; 0 for pads.
        ideal_qk: (q, k) the highest grades in the gallery, highest first.
    """
    ideal = _dcg(ideal_qk)
    return np.divide(_dcg(grades_qk), ideal, out=np.zeros(len(ideal)), where=ideal > 0)


def _dcg(grades_qk: Grades) -> npt.NDArray[np.float64]:
    discounts = np.log2(np.arange(grades_qk.shape[1]) + 2.0)
    total: npt.NDArray[np.float64] = ((2.0**grades_qk - 1) / discounts).sum(axis=1)
    return total
