"""How much of the true neighbours an index finds, shard by shard, and how hard it has to look (DESIGN §2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrcg.index import faiss_backend
from mrcg.index.distances import Neighbours, merge, nearest, recall_of
from mrcg.index.engines import Candidates
from mrcg.index.layout import IndexFacts, Shape
from mrcg.index.part import Part
from mrcg.index.sharded_index import ShardedIndex, wanted
from mrcg.index_build.build_plan import IndexWork

DEPTH = 50
#: Each try looks so many times further than the one before.
STEP = 1.5
#: Tries before it is given up: 1.5 ** 14 is 290 times the first effort.
TRIES = 15


@dataclass(frozen=True)
class Examined:
    """What one shard found: exactly, and with rising effort."""

    exact: Neighbours
    tried: tuple[tuple[int, Candidates], ...]


@dataclass(frozen=True)
class Examine:
    """Searches one shard with rising effort until it finds what is wanted of its own true neighbours."""

    work: IndexWork
    facts: IndexFacts
    queries_qd: npt.NDArray[np.float32]

    def __call__(self, shard: int) -> Examined:
        """Search one shard."""
        shape, least = self.facts.shape, self.work.settings.min_recall
        faiss_backend.use_threads(self.work.threads)
        parts = [Part.open(self.work.on_disk, shape, one) for one in self.facts.parts if one.shard == shard]
        index = ShardedIndex(shape, parts, self.facts.nprobe_or_ef, mapped=True)
        exact = index.exact(self.queries_qd, DEPTH)
        tried: list[tuple[int, Candidates]] = []
        reached = 0
        for nprobe_or_ef in nprobe_or_ef_steps(self.facts.nprobe_or_ef, shape.lists or 2**14):
            # By effort alone: a shard that is small, or lacks scans, would be scanned where the whole index is not.
            tried.append((nprobe_or_ef, _stacked(index.candidates(self.queries_qd, DEPTH, nprobe_or_ef))))
            reached += recall_of(_best([tried[-1][1]], shape), exact) >= least
            # Where candidates are cut by rough distances, all shards together may need a little more than each alone.
            if reached > (shape.refine > 1):
                break
        return Examined(exact, tuple(tried))


def _stacked(batches: Sequence[Candidates]) -> Candidates:
    return Candidates(
        np.concatenate([one.places_qc for one in batches]),
        np.concatenate([one.rough_qc for one in batches]),
        np.concatenate([one.exact_qc for one in batches]),
    )


def _best(found: Sequence[Candidates], shape: Shape) -> Neighbours:
    """What an index that holds all these shards answers: so many of the roughly nearest, ordered exactly."""
    rows = np.concatenate([one.places_qc for one in found], axis=1)
    rough = np.where(rows >= 0, np.concatenate([one.rough_qc for one in found], axis=1), np.inf)
    first = np.argsort(rough, axis=1, kind="stable")[:, : wanted(shape, DEPTH)]
    exact = np.concatenate([one.exact_qc for one in found], axis=1)
    return nearest(np.take_along_axis(rows, first, 1), np.take_along_axis(exact, first, 1), DEPTH)


def nprobe_or_ef_steps(first: int, most: int) -> list[int]:
    """Rising efforts; one where there is nothing to raise."""
    rising = [first] + [min(most, int(np.ceil(first * STEP**n))) for n in range(1, TRIES)]
    return sorted(set(rising)) if first else [0]


def settle(examined: Sequence[Examined], shape: Shape, least: float) -> tuple[int, float]:
    """The least effort with which all shards together reach a recall, and that recall; else the best there is."""
    exact = merge([one.exact for one in examined], DEPTH)
    best = (0, 0.0)
    for nprobe_or_ef in sorted({nprobe_or_ef for one in examined for nprobe_or_ef, _ in one.tried}):
        # A shard that stopped earlier had found enough: what it found counts for higher efforts, too.
        found = [_up_to(one, nprobe_or_ef) for one in examined]
        best = (nprobe_or_ef, recall_of(_best(found, shape), exact))
        if best[1] >= least:
            break
    return best


def _up_to(examined: Examined, nprobe_or_ef: int) -> Candidates:
    return [near for tried, near in examined.tried if tried <= nprobe_or_ef][-1]
