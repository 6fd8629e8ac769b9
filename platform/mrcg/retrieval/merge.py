"""Neighbours of several parts of an index put together: ids and distances first, then vectors of the N nearest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrcg.retrieval.search import Facts, SearchHits


@dataclass(frozen=True)
class ShardHits:
    """What one shard group found for one query, nearest first.

    Attributes:
        rows, distances: gallery rows and squared L2, n of each.
        groups: the patient or study of each, None where it is unknown; None as a from_one_group where nobody asked.
        nearest, allowed, passing, shards, of: as of ``search.Found``, for this shard group alone.
    """

    rows: list[int]
    distances: list[float]
    groups: list[str | None] | None
    nearest: float | None
    allowed: int
    passing: int
    shards: int
    of: int


@dataclass(frozen=True)
class HitDetails:
    """All that an answer needs of some rows: n of each, and (n, d) vectors."""

    image_ids: list[str]
    facts: list[Facts]
    vectors_nd: npt.NDArray[np.float16]


@dataclass(frozen=True)
class HitLocation:
    """Where one of the nearest was found: which shard group, which gallery row, how far."""

    part: int
    row: int
    distance: float


def merge_hits(parts: Sequence[ShardHits | None], n: int) -> list[HitLocation]:
    """The n nearest of all shard groups, ties by gallery row; of a patient or study that is asked for only the nearest.

    Args:
        parts: of each shard group; None where one did not answer.
        n: how many.
    """
    found = [
        (distance, row, number, group)
        for number, part in enumerate(parts)
        if part is not None
        for row, distance, group in zip(part.rows, part.distances, part.groups or [None] * len(part.rows), strict=True)
    ]
    seen: set[str] = set()
    places: list[HitLocation] = []
    for distance, row, number, group in sorted(found, key=lambda one: one[:2]):
        if group is None or group not in seen:
            places.append(HitLocation(number, row, distance))
            seen.update([] if group is None else [group])
        if len(places) == n:
            break
    return places


def rows_to_fetch(places: Sequence[HitLocation], parts: int) -> list[list[int]]:
    """Rows that each shard group has to fetch."""
    return [[one.row for one in places if one.part == number] for number in range(parts)]


def from_one_group(near: ShardHits, fetched: HitDetails) -> SearchHits:
    """What one shard group that has everything answers."""
    return SearchHits(
        image_ids=fetched.image_ids,
        facts=fetched.facts,
        distances=near.distances,
        vectors_nd=fetched.vectors_nd,
        nearest=near.nearest,
        allowed=near.allowed,
        passing=near.passing,
        shards=near.shards,
        of=near.of,
    )


def assemble_hits(
    places: Sequence[HitLocation], parts: Sequence[ShardHits | None], fetched: Sequence[HitDetails | None]
) -> SearchHits:
    """The answer of all shard groups together.

    Args:
        places: the nearest, nearest first.
        parts: what each found; one at least is not None.
        fetched: for each the rows of ``rows_to_fetch``, in that order.
    """
    turns = [iter(range(len(one.image_ids))) if one is not None else iter(()) for one in fetched]
    ids, facts, vectors = list[str](), list[Facts](), list[npt.NDArray[np.float16]]()
    for place in places:
        one, turn = fetched[place.part], next(turns[place.part])
        assert one is not None
        ids.append(one.image_ids[turn])
        facts.append(one.facts[turn])
        vectors.append(one.vectors_nd[turn])
    there = [part for part in parts if part is not None]
    nearest = [part.nearest for part in there if part.nearest is not None]
    return SearchHits(
        image_ids=ids,
        facts=facts,
        distances=[place.distance for place in places],
        vectors_nd=np.stack(vectors) if vectors else np.empty((0, 0), dtype=np.float16),
        nearest=min(nearest, default=None),
        allowed=sum(part.allowed for part in there),
        passing=sum(part.passing for part in there),
        shards=sum(part.shards for part in there),
        of=there[0].of,
    )
