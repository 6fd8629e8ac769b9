"""The order of the hits of a query: by distance, by score, or by both (docs/method.md#order).

The score says "same class". Among hits that the reranker is sure of it is flat, and its order is chance; there the
distance decides.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from mrcg.arrays import Mask, RowNumbers, Vectors
from mrcg.frozen import Frozen

OrderName = Literal["ann", "fused", "score"]

#: A hit is a copy of the query if their squared distance is at most this share of the query's squared length. A stored
#: fp16 number is off by up to 2**-11 of itself; the factor of 4 leaves room for another engine or batch size.
COPY_TOLERANCE = 4 * 2.0**-22
#: Smallest score whose logarithm is taken.
_TINY = float(np.finfo(np.float32).tiny)

Floats = npt.NDArray[np.floating]


class HitOrder(Frozen):
    """How the hits of a query are ordered.

    Attributes:
        name: ann: by distance; score: by the reranker's score alone, as in the paper; fused: exact copies of the query
            first, then by s - λ d.
        distance_weight: λ of the fused order.
    """

    name: OrderName = "score"
    distance_weight: float = Field(0.0, ge=0.0, allow_inf_nan=False)

    def ranks(self, scores_qn: Floats, distances_qn: Floats, copies_qn: Mask) -> RowNumbers:
        """Return the (q, n) ANN ranks of the hits, from 0, in this order, best first; ties keep the ANN order.

        Args:
            scores_qn: scores of the reranker, 0 to 1; -1 for pads.
            distances_qn: squared L2 of the whole vectors, in ANN order; inf for pads.
            copies_qn: whether each hit is an exact copy of the query, see ``exact_copies``.
        """
        if self.name == "ann":
            return np.broadcast_to(np.arange(scores_qn.shape[1]), scores_qn.shape)
        if self.name == "score":
            return np.argsort(-scores_qn, axis=1, kind="stable")
        keys = fused_scores(scores_qn, distances_qn, self.distance_weight)
        return np.argsort(np.where(copies_qn, -np.inf, -keys), axis=1, kind="stable")


#: The order of releases made by earlier versions of MRCG, and of the paper.
BY_SCORE = HitOrder()
BY_DISTANCE = HitOrder(name="ann")


class GridRow(Frozen):
    """Figures of the validation scans with one λ; None is infinity, the ANN order.

    ``known_first`` is the share of changed forms with which a known item finds itself first; None if none was searched.
    """

    weight: float | None
    map: float
    precision_at_1: float
    known_first: float | None


class OrderChoice(Frozen):
    """The order that a release serves, and how it was chosen.

    Attributes:
        order: that is served.
        reason: why it was chosen, in words.
        grid: figures of each λ that was tried; empty where there was no choice.
        weight_low, weight_high: 95 % bootstrap interval of λ; None is infinity.
    """

    order: HitOrder = BY_SCORE
    reason: str = "the order by score alone, as in the paper"
    grid: tuple[GridRow, ...] = ()
    weight_low: float | None = None
    weight_high: float | None = None


def fused_scores(scores_qn: Floats, distances_qn: Floats, distance_weight: float) -> npt.NDArray[np.float64]:
    """Return s - λ d of each hit, -inf for pads and for hits whose distance is not finite.

    s is the logarithm of the score, d the squared distance divided by the median of the list's positive distances.
    """
    s = np.log(np.clip(scores_qn.astype(np.float64), _TINY, None))
    fused: npt.NDArray[np.float64] = s - distance_weight * np.nan_to_num(relative_distances(distances_qn), posinf=0.0)
    return np.where(np.isfinite(distances_qn) & (scores_qn >= 0), fused, -np.inf)


def relative_distances(distances_qn: Floats) -> npt.NDArray[np.float64]:
    """Return distances divided by the median of the positive finite ones in their list; 0 where there is none."""
    distances = distances_qn.astype(np.float64)
    if not distances.shape[1]:  # a query graph of one node without that node
        return distances
    positive = np.isfinite(distances) & (distances > 0)
    ordered = np.sort(np.where(positive, distances, np.inf), axis=1)
    counts_q1 = positive.sum(axis=1, keepdims=True)
    middle = [np.take_along_axis(ordered, np.maximum(counts_q1 - 1 + more, 0) // 2, 1) for more in (0, 1)]
    medians_q1 = np.where(counts_q1 > 0, (middle[0] + middle[1]) / 2, np.inf)
    return np.where(np.isfinite(distances), distances, 0.0) / medians_q1 + np.where(np.isfinite(distances), 0.0, np.inf)


def exact_copies(queries_qd: Vectors, hits_qnd: Vectors, trained_dim: int) -> Mask:
    """Return (q, n) whether each hit shows the same pixels as the query, as far as stored vectors can tell.

    Only the appearance part is compared, if there is one: it does not depend on the engine that runs the encoder.

    Args:
        queries_qd: embeddings of the queries.
        hits_qnd: stored embeddings of their hits.
        trained_dim: dimensions of the trained part, which comes first.
    """
    first = trained_dim if trained_dim < queries_qd.shape[-1] else 0
    queries = queries_qd[:, None, first:].astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        squared_qn = np.square(queries - hits_qnd[..., first:].astype(np.float32)).sum(axis=-1)
        near_qn = squared_qn <= COPY_TOLERANCE * np.square(queries).sum(axis=-1)
    # Numbers of a caller may overflow: infinity is no evidence of a copy.
    copies: Mask = near_qn & np.isfinite(squared_qn)
    return copies
