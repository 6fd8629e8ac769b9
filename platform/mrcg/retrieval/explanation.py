"""Order the hits of a query, and explain the order by leaving things out (docs/serving.md#explanations)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrcg.api.responses import Explained, Explanation, Influence, Node
from mrcg.arrays import Mask, RowNumbers
from mrcg.metrics.order import BY_SCORE, HitOrder
from mrcg.reranker.leave_one_out import LeaveOneOut

#: Maximum number of neighbours in the explanation of a hit.
MAX_INFLUENCES = 5

#: Relative differences of scores up to which they are the same.
ROUNDING = 1e-4

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class RankedHits:
    """The hits of one query in ANN order, and the order in which they are answered.

    Attributes:
        hit_order: how hits are ordered.
        scores_n, distances_n: of the n hits.
        copies_n: whether each is an exact copy of the query.
    """

    hit_order: HitOrder
    scores_n: Scores
    distances_n: npt.NDArray[np.float64]
    copies_n: Mask

    @property
    def order(self) -> list[int]:
        """ANN ranks of the hits, from 0, best first."""
        return self._ranks(self.hit_order, self.scores_n)

    @property
    def by_score(self) -> list[int]:
        """The same by score alone."""
        return self._ranks(BY_SCORE, self.scores_n)

    def without_each(self, scores_nn: Scores) -> RowNumbers:
        """Return the (n, n - 1) order of the other hits if the hit of the row were not there.

        Args:
            scores_nn: scores of the others without it; the entry of the hit itself means nothing.
        """
        left_out_nn = np.eye(len(self.scores_n), dtype=bool)
        # Hits with equal vectors get scores that differ by rounding, which would move them.
        same_nn = np.isclose(scores_nn, self.scores_n, rtol=ROUNDING, atol=0.0)
        scores_nn = np.where(left_out_nn, -1.0, np.where(same_nn, self.scores_n, scores_nn))
        distances_nn = np.where(left_out_nn, np.inf, self.distances_n)
        ranks_nn = self.hit_order.ranks(scores_nn, distances_nn, self.copies_n & ~left_out_nn)
        others = ranks_nn != np.arange(len(ranks_nn))[:, None]
        orders: RowNumbers = ranks_nn[others].reshape(len(ranks_nn), len(ranks_nn) - 1)
        return orders

    def _ranks(self, order: HitOrder, scores_n: Scores) -> list[int]:
        ranks: list[int] = order.ranks(scores_n[None], self.distances_n[None], self.copies_n[None])[0].tolist()
        return ranks


def explain(image_ids: Sequence[str], ranked: RankedHits, leave_one_out: LeaveOneOut, k: int) -> Explanation:
    """Explain the ranks of the first k hits.

    Args:
        image_ids: of the hits in ANN order.
        ranked: the hits and their order.
        leave_one_out: scores with each hit left out of the query graph.
        k: number of hits in the answer.
    """
    order, score_rank = ranked.order, _places(ranked.by_score)
    rank = _places(order)
    moved_nn = _moves(ranked, order, leave_one_out)
    hits = [
        Explained(
            image_id=image_ids[place],
            rank_change=place - rank[place],
            by_distance=score_rank[place] - rank[place],
            neighbours=[
                Influence(image_id=image_ids[other], moved=int(moved_nn[other, place]))
                for other in np.argsort(-np.abs(moved_nn[:, place]), kind="stable")[:MAX_INFLUENCES].tolist()
                if moved_nn[other, place]
            ],
        )
        for place in order[:k]
    ]
    return Explanation(
        nodes=[
            Node(image_id=ident, ann_rank=place + 1, rank=rank[place] + 1, score=float(ranked.scores_n[place]))
            for place, ident in enumerate(image_ids)
        ],
        weights=np.round(leave_one_out.weights_nn.astype(float), 4).tolist(),
        hits=hits,
        graph_changed_order=bool(moved_nn.any()),
    )


def _moves(ranked: RankedHits, order: list[int], leave_one_out: LeaveOneOut) -> npt.NDArray[np.int64]:
    """Return (n, n) ranks that the second hit is higher because the first is in the graph, counted among the others."""
    count = len(order)
    rank_n = np.empty(count, dtype=np.int64)
    rank_n[order] = np.arange(count)
    places_nm = ranked.without_each(leave_one_out.scores_nn)
    with_it_nm = rank_n[places_nm] - (rank_n[places_nm] > rank_n[:, None])
    moved_nn = np.zeros((count, count), dtype=np.int64)
    np.put_along_axis(moved_nn, places_nm, np.arange(count - 1) - with_it_nm, axis=1)
    return moved_nn


def _places(order: Sequence[int]) -> dict[int, int]:
    return {place: rank for rank, place in enumerate(order)}
