"""Order the hits of a query, and explain the order by leaving things out (docs/serving.md#explanations)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrcg.api.responses import Explained, Explanation, Influence, Node
from mrcg.arrays import Mask
from mrcg.metrics.order import BY_SCORE, HitOrder
from mrcg.reranker.leave_one_out import LeaveOneOut

#: Maximum number of neighbours in the explanation of a hit.
MAX_INFLUENCES = 5

#: Differences of scores up to which they are the same.
ROUNDING = 1e-5

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

    def without(self, left_out: int, scores_n: Scores) -> list[int]:
        """Return the order of the other hits if one hit were not there.

        Args:
            left_out: ANN rank of the hit.
            scores_n: scores of the others without it.
        """
        kept = np.arange(len(scores_n)) != left_out
        # Hits with equal vectors get scores that differ by rounding, which would move them.
        scores_n = np.where(np.abs(scores_n - self.scores_n) < ROUNDING, self.scores_n, scores_n)
        ranks = self.hit_order.ranks(scores_n[None, kept], self.distances_n[None, kept], self.copies_n[None, kept])[0]
        places: list[int] = np.flatnonzero(kept)[ranks].tolist()
        return places

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
    moved = np.zeros((count, count), dtype=np.int64)
    for left_out in range(count):
        others = [place for place in order if place != left_out]
        with_it, without_it = _places(others), _places(ranked.without(left_out, leave_one_out.scores_nn[left_out]))
        for place in others:
            moved[left_out, place] = without_it[place] - with_it[place]
    return moved


def _places(order: Sequence[int]) -> dict[int, int]:
    return {place: rank for rank, place in enumerate(order)}
