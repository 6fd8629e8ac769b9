"""Merge the hits of several parts of an index: first rows and distances, then the details of the N nearest only.

A part of an index is the group of shards that one searcher has loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrcg.retrieval.search import GalleryFacts, SearchHits


@dataclass(frozen=True)
class ShardHits:
    """Hits of one part of the index for one query, nearest first, without details.

    Attributes:
        rows, distances: gallery rows and squared L2, n of each.
        groups: the patient or study of each hit, None where unknown; None if the search does not group hits.
        nearest, allowed, passing, shards: as in ``SearchHits``, for this part only.
        total_shards: number of shards in the whole index.
    """

    rows: list[int]
    distances: list[float]
    groups: list[str | None] | None
    nearest: float | None
    allowed: int
    passing: int
    shards: int
    total_shards: int


@dataclass(frozen=True)
class HitDetails:
    """Everything that an answer needs of n gallery rows: n ids and facts, and (n, d) vectors."""

    image_ids: list[str]
    facts: list[GalleryFacts]
    vectors_nd: npt.NDArray[np.float16]


@dataclass(frozen=True)
class HitLocation:
    """Where a merged hit is: number of the part, gallery row, and distance."""

    part: int
    row: int
    distance: float


def merge_hits(parts: Sequence[ShardHits | None], n: int) -> list[HitLocation]:
    """Return the n nearest hits of all parts; ties go to the lower gallery row, and each group keeps its nearest hit.

    Args:
        parts: hits of each part; None for a part that did not answer.
        n: maximum number of hits.
    """
    hits = [
        (distance, row, number, group)
        for number, part in enumerate(parts)
        if part is not None
        for row, distance, group in zip(part.rows, part.distances, part.groups or [None] * len(part.rows), strict=True)
    ]
    seen: set[str] = set()
    places: list[HitLocation] = []
    for distance, row, number, group in sorted(hits, key=lambda hit: hit[:2]):
        if group is None or group not in seen:
            places.append(HitLocation(number, row, distance))
            seen.update([] if group is None else [group])
        if len(places) == n:
            break
    return places


def rows_to_fetch(places: Sequence[HitLocation], parts: int) -> list[list[int]]:
    """Return the rows of the merged hits by part, for ``Searcher.fetch``."""
    return [[place.row for place in places if place.part == number] for number in range(parts)]


def hits_of_one_part(near: ShardHits, fetched: HitDetails) -> SearchHits:
    """Return the hits of an index that has one part only."""
    return SearchHits(
        image_ids=fetched.image_ids,
        facts=fetched.facts,
        distances=near.distances,
        vectors_nd=fetched.vectors_nd,
        nearest=near.nearest,
        allowed=near.allowed,
        passing=near.passing,
        shards=near.shards,
        total_shards=near.total_shards,
    )


def assemble_hits(
    places: Sequence[HitLocation], parts: Sequence[ShardHits | None], fetched: Sequence[HitDetails | None]
) -> SearchHits:
    """Return the merged hits with their details.

    Args:
        places: the merged hits, nearest first.
        parts: hits of each part, None for a part that did not answer; at least one is not None.
        fetched: details of the rows of ``rows_to_fetch`` by part, in the same order; None where there are no rows.
    """
    positions = [iter(range(0 if details is None else len(details.image_ids))) for details in fetched]
    ids, facts, vectors = list[str](), list[GalleryFacts](), list[npt.NDArray[np.float16]]()
    for place in places:
        details, position = fetched[place.part], next(positions[place.part])
        assert details is not None
        ids.append(details.image_ids[position])
        facts.append(details.facts[position])
        vectors.append(details.vectors_nd[position])
    answered = [part for part in parts if part is not None]
    nearest = [part.nearest for part in answered if part.nearest is not None]
    return SearchHits(
        image_ids=ids,
        facts=facts,
        distances=[place.distance for place in places],
        vectors_nd=np.stack(vectors) if vectors else np.empty((0, 0), dtype=np.float16),
        nearest=min(nearest, default=None),
        allowed=sum(part.allowed for part in answered),
        passing=sum(part.passing for part in answered),
        shards=sum(part.shards for part in answered),
        total_shards=answered[0].total_shards,
    )
