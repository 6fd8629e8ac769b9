"""Retrieval metrics over ranked relevance (paper §IV, docs/method.md#metrics)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: Depth of AP@n.
DEPTH = 50

Relevance = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.float64]


def precision_at(relevant_qn: Relevance, k: int) -> Scores:
    """Return P@k of each query: the relevant hits among the first k, divided by k (even if fewer were found).

    Args:
        relevant_qn: (queries, ranks), True where the hit at that rank has the query's class.
        k: number of ranks, at least 1.

    Returns:
        (queries,) in [0, 1].
    """
    assert k >= 1
    precision: Scores = relevant_qn[:, :k].sum(axis=1) / k
    return precision


def recall_at(relevant_qn: Relevance, k: int, reachable: npt.NDArray[np.int64]) -> Scores:
    """Return recall@k of each query: relevant hits among the first k, divided by all relevant scans in the gallery.

    It is 0 if the gallery has no relevant scan. This is recall as in information retrieval, which is at most k divided
    by the number of relevant scans: with 600 scans of a class in the gallery, recall@50 is at most 0.083. (In metric
    learning, recall@k is the share of queries with a relevant hit among the first k; at k = 1 that equals P@1.)

    Args:
        relevant_qn: (queries, ranks) ranked relevance.
        k: number of ranks, at least 1.
        reachable: (queries,) number of relevant scans in the gallery that the query may find.

    Returns:
        (queries,) in [0, 1].
    """
    assert k >= 1
    hits = relevant_qn[:, :k].sum(axis=1)
    recall: Scores = np.divide(hits, reachable, out=np.zeros(len(relevant_qn)), where=reachable > 0)
    return recall


def average_precision(relevant_qn: Relevance, total: npt.NDArray[np.int64] | None = None) -> Scores:
    """Return AP@n = (1/TTP) Σ_{k<=n} P@k·rel@k of each query; 0 if nothing is relevant.

    Args:
        relevant_qn: (queries, n) ranked relevance.
        total: (queries,) TTP. None uses the number of relevant hits among the n ranks (``map``); pass min(n,
            relevant scans in the gallery) for ``map_full``. docs/method.md#metrics says why both are reported.

    Returns:
        (queries,) in [0, 1].
    """
    ranks = np.arange(1, relevant_qn.shape[1] + 1)
    hits = relevant_qn.cumsum(axis=1)
    precision_sum = (hits / ranks * relevant_qn).sum(axis=1)
    ttp = relevant_qn.sum(axis=1) if total is None else total
    scores: Scores = np.divide(precision_sum, ttp, out=np.zeros(len(relevant_qn)), where=ttp > 0)
    return scores


def mean_average_precision(relevant_qn: Relevance, total: npt.NDArray[np.int64] | None = None) -> float:
    """Return the mean of ``average_precision`` over the queries; 0 without queries."""
    return float(average_precision(relevant_qn, total).mean()) if len(relevant_qn) else 0.0
