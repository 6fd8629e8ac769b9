"""How an index grows and shrinks: what stays as it is, what is filled anew, what is added (DESIGN §2). Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mrcg.index.distances import Rows
from mrcg.index.layout import PartFacts

#: An index that has grown to so many times what it was trained on is trained again.
RETRAIN = 2.0
#: Recall is measured again where the number of vectors moved by more than this part since it last was.
REMEASURE = 0.1
#: New rows take those of an earlier part along that is at most so many times as large: so parts stay few.
ABSORB = 2


@dataclass(frozen=True)
class Kept:
    """A part that stays, with the present gallery rows of its rows; -1 where one is gone."""

    facts: PartFacts
    rows: Rows


@dataclass(frozen=True)
class Fill:
    """Gallery rows, rising, that a new part of a shard is filled with."""

    shard: int
    rows: Rows


def grow(
    parts: Sequence[Kept], fresh: Mapping[int, Rows], compact_above: float, purge: bool
) -> tuple[list[Kept], list[Fill]]:
    """What becomes of the parts of an index.

    Args:
        parts: of the earlier version, with the present rows of what they hold.
        fresh: rows that no part holds, by shard.
        compact_above: share of a part's rows that may be gone before it is filled anew.
        purge: fill every part anew that holds anything that is gone: nothing of it may remain on disk.

    Returns:
        Parts that stay, and new ones; every live row is in one of them, once.
    """
    kept: list[Kept] = []
    fills: list[Fill] = []
    for shard in sorted({part.facts.shard for part in parts} | set(fresh)):
        stay: list[Kept] = []
        for part in (one for one in parts if one.facts.shard == shard):
            live = part.rows[part.rows >= 0]
            gone = len(part.rows) - len(live)
            if not len(live):
                continue
            if gone > compact_above * len(part.rows) or (purge and gone):
                fills.append(Fill(shard, np.sort(live)))
            else:
                stay.append(part)
        new = fresh.get(shard, np.empty(0, dtype=np.int64))
        while len(new) and stay and len(stay[-1].rows) <= ABSORB * len(new):
            last = stay.pop().rows
            new = np.concatenate([new, last[last >= 0]])
        if len(new):
            fills.append(Fill(shard, np.sort(new)))
        kept += stay
    return kept, fills


def in_pieces(fill: Fill, most: int) -> list[Fill]:
    """A fill cut into equal pieces of at most so many rows."""
    count = max(1, -(-len(fill.rows) // max(1, most)))
    return [Fill(fill.shard, rows) for rows in np.array_split(fill.rows, count)]


def train_again(trained_on: int, live: int) -> bool:
    """Whether cells that were learned from so many vectors are too few or too coarse by now."""
    return live > RETRAIN * max(1, trained_on)


def measure_again(measured: int, live: int) -> bool:
    """Whether a recall that was measured with so many vectors says nothing of the present ones."""
    return abs(live - measured) > REMEASURE * max(1, measured)
