"""Measures the recall of an index shard by shard, and chooses its nprobe or ef_search (docs/index.md#planning)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrcg.index import faiss_backend
from mrcg.index.distances import Neighbours, merge, nearest, recall_with_ties
from mrcg.index.engines import Candidates
from mrcg.index.layout import IndexFacts, Shape
from mrcg.index.part import Part
from mrcg.index.sharded_index import ShardedIndex, candidate_count
from mrcg.index_build.build_plan import IndexWork

#: Neighbours of a query: recall@50.
DEPTH = 50
#: Each step multiplies nprobe or ef_search by this.
STEP = 1.5
#: Steps before the search for a sufficient value ends: 1.5 ** 14 is 290 times the first value.
TRIES = 15


@dataclass(frozen=True)
class ShardSearches:
    """Search results of one shard.

    Attributes:
        exact: true neighbours within the shard.
        tried: nprobe or ef_search, ascending, each with the candidates that it found.
    """

    exact: Neighbours
    tried: tuple[tuple[int, Candidates], ...]


@dataclass(frozen=True)
class SearchShard:
    """Searches one shard with rising nprobe or ef_search until its own recall reaches ``index.min_recall``."""

    work: IndexWork
    facts: IndexFacts
    queries_qd: npt.NDArray[np.float32]

    def __call__(self, shard: int) -> ShardSearches:
        """Search one shard."""
        shape, min_recall = self.facts.shape, self.work.settings.min_recall
        faiss_backend.use_threads(self.work.threads)
        parts = [Part.open(self.work.on_disk, shape, part) for part in self.facts.parts if part.shard == shard]
        index = ShardedIndex(shape, parts, self.facts.nprobe_or_ef, mapped=True)
        exact = index.exact(self.queries_qd, DEPTH)
        tried: list[tuple[int, Candidates]] = []
        reached = 0
        for nprobe_or_ef in nprobe_or_ef_steps(self.facts.nprobe_or_ef, shape.lists or 2**14):
            # Without scans: a small shard, or one with deleted rows, would be scanned where the full index is not.
            tried.append((nprobe_or_ef, _stacked(index.candidates(self.queries_qd, DEPTH, nprobe_or_ef))))
            reached += recall_with_ties(_best([tried[-1][1]], shape), exact) >= min_recall
            # Where candidates are cut by rough distances, all shards together may need a little more than each one.
            if reached > (shape.refine > 1):
                break
        return ShardSearches(exact, tuple(tried))


def _stacked(batches: Sequence[Candidates]) -> Candidates:
    return Candidates(
        np.concatenate([batch.positions_qc for batch in batches]),
        np.concatenate([batch.rough_qc for batch in batches]),
        np.concatenate([batch.exact_qc for batch in batches]),
    )


def _best(candidates: Sequence[Candidates], shape: Shape) -> Neighbours:
    """Return what one index of these shards returns: the nearest by rough distance, cut, then ordered exactly."""
    rows = np.concatenate([shard.positions_qc for shard in candidates], axis=1)
    rough = np.where(rows >= 0, np.concatenate([shard.rough_qc for shard in candidates], axis=1), np.inf)
    first = np.argsort(rough, axis=1, kind="stable")[:, : candidate_count(shape, DEPTH)]
    exact = np.concatenate([shard.exact_qc for shard in candidates], axis=1)
    return nearest(np.take_along_axis(rows, first, 1), np.take_along_axis(exact, first, 1), DEPTH)


def nprobe_or_ef_steps(first: int, most: int) -> list[int]:
    """Return ascending values of nprobe or ef_search to try; only 0 where ``first`` is 0 (kind flat)."""
    rising = [first] + [min(most, int(np.ceil(first * STEP**n))) for n in range(1, TRIES)]
    return sorted(set(rising)) if first else [0]


def choose_nprobe_or_ef(searches: Sequence[ShardSearches], shape: Shape, min_recall: float) -> tuple[int, float]:
    """Return the smallest nprobe or ef_search with which all shards together reach a recall, and that recall.

    If none does, return the largest that was tried, and its recall.
    """
    exact = merge([shard.exact for shard in searches], DEPTH)
    best = (0, 0.0)
    for nprobe_or_ef in sorted({nprobe_or_ef for shard in searches for nprobe_or_ef, _ in shard.tried}):
        # A shard that stopped at a smaller value had found enough: its last candidates count for larger values, too.
        candidates = [_up_to(shard, nprobe_or_ef) for shard in searches]
        best = (nprobe_or_ef, recall_with_ties(_best(candidates, shape), exact))
        if best[1] >= min_recall:
            break
    return best


def _up_to(shard: ShardSearches, nprobe_or_ef: int) -> Candidates:
    return [candidates for value, candidates in shard.tried if value <= nprobe_or_ef][-1]
