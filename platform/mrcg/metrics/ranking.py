"""Retrieval metrics over ranked relevance (paper §IV, DESIGN §3)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: Depth of AP@n.
DEPTH = 50

Relevance = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.float64]


def precision_at(relevant_qn: Relevance, k: int) -> Scores:
    """P@k of each query: relevant among the first k, over k (also where fewer were found).

    Args:
        relevant_qn: (queries, ranks), True where the hit at that rank has the query's class.
        k: ranks that count, at least 1.

    Returns:
        (queries,) in [0, 1].
    """
    assert k >= 1
    precision: Scores = relevant_qn[:, :k].sum(axis=1) / k
    return precision


def recall_at(relevant_qn: Relevance, k: int, reachable: npt.NDArray[np.int64]) -> Scores:
    """Recall@k of each query: relevant among the first k, over all relevant in the gallery; 0 where there are none.

    This is information retrieval's recall, which cannot be above k over the relevant: with 600 scans of a
    class in the gallery recall@50 is 0.083 at best. (Metric learning calls recall@k what is "one of the
    first k is relevant" here; at k = 1 that is P@1.)

    Args:
        relevant_qn: (queries, ranks) ranked relevance.
        k: ranks that count, at least 1.
        reachable: (queries,) relevant scans of the gallery that the query may find.

    Returns:
        (queries,) in [0, 1].
    """
    assert k >= 1
    hits = relevant_qn[:, :k].sum(axis=1)
    recall: Scores = np.divide(hits, reachable, out=np.zeros(len(relevant_qn)), where=reachable > 0)
    return recall


def average_precision(relevant_qn: Relevance, total: npt.NDArray[np.int64] | None = None) -> Scores:
    """AP@n = (1/TTP) Σ_{k<=n} P@k·rel@k of each query; 0 where nothing is relevant.

    Args:
        relevant_qn: (queries, n) ranked relevance.
        total: (queries,) TTP. None takes the relevant among the n ranks (``map``); pass min(n,
            relevant in the gallery) for ``map_full``. DESIGN §3 says why both are reported.

    Returns:
        (queries,) in [0, 1].
    """
    ranks = np.arange(1, relevant_qn.shape[1] + 1)
    hits = relevant_qn.cumsum(axis=1)
    gained = (hits / ranks * relevant_qn).sum(axis=1)
    ttp = relevant_qn.sum(axis=1) if total is None else total
    scores: Scores = np.divide(gained, ttp, out=np.zeros(len(relevant_qn)), where=ttp > 0)
    return scores


def mean_average_precision(relevant_qn: Relevance, total: npt.NDArray[np.int64] | None = None) -> float:
    """Mean of ``average_precision`` over the queries; 0 where there are none."""
    return float(average_precision(relevant_qn, total).mean()) if len(relevant_qn) else 0.0
