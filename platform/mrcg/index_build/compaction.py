"""Decides which parts of an index stay, which are rebuilt, and which are added. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mrcg.arrays import RowNumbers
from mrcg.index.layout import PartFacts

#: An index is trained again when it has more than this many times the vectors it was trained on.
RETRAIN_FACTOR = 2.0
#: Recall is measured again when the number of vectors has changed by more than this share.
REMEASURE_SHARE = 0.1
#: New rows absorb an earlier part of at most this many times their number, which keeps parts few.
ABSORB_FACTOR = 2


@dataclass(frozen=True)
class KeptPart:
    """An existing part, with the current gallery rows of its rows; -1 where one is deleted."""

    facts: PartFacts
    rows: RowNumbers


@dataclass(frozen=True)
class NewPart:
    """The gallery rows, ascending, of a part of a shard that is to be built."""

    shard: int
    rows: RowNumbers


def plan_parts(
    parts: Sequence[KeptPart], new_rows: Mapping[int, RowNumbers], compact_above: float, purge: bool
) -> tuple[list[KeptPart], list[NewPart]]:
    """Decide which parts of an index are kept and which are built.

    Args:
        parts: of the earlier version, with their current rows.
        new_rows: rows that no part holds, by shard.
        compact_above: rebuild a part when more than this share of its rows is deleted.
        purge: rebuild every part that has a deleted row, so that nothing of it remains on disk.

    Returns:
        Parts that are kept, and parts to build. Every live row is in exactly one of them.
    """
    kept: list[KeptPart] = []
    built: list[NewPart] = []
    for shard in sorted({part.facts.shard for part in parts} | set(new_rows)):
        shard_kept: list[KeptPart] = []
        for part in (part for part in parts if part.facts.shard == shard):
            live = part.rows[part.rows >= 0]
            deleted = len(part.rows) - len(live)
            if not len(live):
                continue
            if deleted > compact_above * len(part.rows) or (purge and deleted):
                built.append(NewPart(shard, np.sort(live)))
            else:
                shard_kept.append(part)
        rows = new_rows.get(shard, np.empty(0, dtype=np.int64))
        while len(rows) and shard_kept and len(shard_kept[-1].rows) <= ABSORB_FACTOR * len(rows):
            absorbed = shard_kept.pop().rows
            rows = np.concatenate([rows, absorbed[absorbed >= 0]])
        if len(rows):
            built.append(NewPart(shard, np.sort(rows)))
        kept += shard_kept
    return kept, built


def split_part(part: NewPart, max_rows: int) -> list[NewPart]:
    """Split a part into parts of equal size, give or take one row, of at most ``max_rows`` rows each."""
    count = max(1, -(-len(part.rows) // max(1, max_rows)))
    return [NewPart(part.shard, rows) for rows in np.array_split(part.rows, count)]


def retraining_due(trained_on: int, live: int) -> bool:
    """Return whether ``live`` vectors are too many for cells that were trained on ``trained_on`` vectors."""
    return live > RETRAIN_FACTOR * max(1, trained_on)


def recall_outdated(measured: int, live: int) -> bool:
    """Return whether a recall measured with ``measured`` vectors no longer holds for ``live`` vectors."""
    return abs(live - measured) > REMEASURE_SHARE * max(1, measured)
