"""How much of the true neighbours an index finds, shard by shard, and how hard it has to look (DESIGN §2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrcg.index import kinds
from mrcg.index.blueprint import IndexWork
from mrcg.index.layout import IndexFacts
from mrcg.index.metric import Neighbours, merge, recall_at
from mrcg.index.shard import Part
from mrcg.index.sharded import ShardedIndex

DEPTH = 50
#: Each try looks so many times further than the one before.
STEP = 1.5
#: Tries before it is given up: 1.5 ** 14 is 290 times the first effort.
TRIES = 15


@dataclass(frozen=True)
class Examined:
    """What one shard found: exactly, and with rising effort."""

    exact: Neighbours
    tried: tuple[tuple[int, Neighbours], ...]


@dataclass(frozen=True)
class Examine:
    """Searches one shard with rising effort until it finds what is wanted of its own true neighbours."""

    work: IndexWork
    facts: IndexFacts
    queries_qd: npt.NDArray[np.float32]

    def __call__(self, shard: int) -> Examined:
        """Search one shard."""
        facts, most = self.facts, self.facts.shape.lists or 2**14
        kinds.use_threads(self.work.threads)
        parts = [Part.open(self.work.on_disk, facts.shape, one) for one in facts.parts if one.shard == shard]
        index = ShardedIndex(facts.shape, parts, facts.effort)
        exact = index.exact(self.queries_qd, DEPTH)
        tried: list[tuple[int, Neighbours]] = []
        for effort in efforts(facts.effort, most):
            tried.append((effort, index.search(self.queries_qd, DEPTH, None, effort)))
            if recall_at(tried[-1][1].rows_qk, exact.rows_qk) >= self.work.settings.min_recall:
                break
        return Examined(exact, tuple(tried))


def efforts(first: int, most: int) -> list[int]:
    """Rising efforts; one where there is nothing to raise."""
    rising = [first] + [min(most, int(np.ceil(first * STEP**n))) for n in range(1, TRIES)]
    return sorted(set(rising)) if first else [0]


def settle(examined: Sequence[Examined], wanted: float) -> tuple[int, float]:
    """The least effort with which all shards together reach a recall, and that recall; else the best there is."""
    exact = merge([one.exact for one in examined], DEPTH)
    best = (0, 0.0)
    for effort in sorted({effort for one in examined for effort, _ in one.tried}):
        # A shard that stopped earlier had found enough: what it found counts for higher efforts, too.
        found = [_up_to(one, effort) for one in examined]
        best = (effort, recall_at(merge(found, DEPTH).rows_qk, exact.rows_qk))
        if best[1] >= wanted:
            break
    return best


def _up_to(examined: Examined, effort: int) -> Neighbours:
    return [near for tried, near in examined.tried if tried <= effort][-1]
