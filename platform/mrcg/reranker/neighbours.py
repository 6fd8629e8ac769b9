"""Neighbour lists of queries, without the query's own group (DESIGN §3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mrcg.index.distances import Mask, Neighbours, Rows, nearest
from mrcg.index.sharded_index import ShardedIndex

Codes = npt.NDArray[np.int64]


def neighbour_lists(index: ShardedIndex, queries: Rows, allowed: Mask, n: int, exclude_own_group: bool) -> Neighbours:
    """The n nearest allowed images of gallery images.

    Args:
        index: holds every scan, the queries too.
        queries: (q,) gallery rows.
        allowed: (rows,) what may be found.
        n: neighbours of each; fewer only where fewer are allowed.
        exclude_own_group: leave out the query itself and all of its group.

    Returns:
        (q, n) rows and squared L2 distances, nearest first.
    """
    vectors = index.vectors(queries)
    if not exclude_own_group:
        return index.search(vectors, n, allowed)
    groups = index.gallery.codes("group_id")
    found = index.search(vectors, n + largest_group(groups, queries, allowed), allowed)
    return without_own_group(found, queries, groups, n)


def largest_group(groups: Codes, queries: Rows, allowed: Mask) -> int:
    """The most members that the group of any of these queries has among what is allowed: so many may have to go."""
    if not len(queries):
        return 0
    sizes = np.bincount(groups[allowed], minlength=int(groups.max()) + 1)
    return int(sizes[groups[queries]].max())


def without_own_group(found: Neighbours, queries: Rows, groups: Codes, n: int) -> Neighbours:
    """The n nearest of each query that are not of its own group."""
    own = (groups[found.rows_qk] == groups[queries][:, None]) | (found.rows_qk < 0)
    return nearest(
        np.where(own, -1, found.rows_qk), np.where(own, np.float32(np.inf), found.distances_qk).astype(np.float32), n
    )


def codes_of(values: Sequence[str | None]) -> Codes:
    """A number for each distinct value, -1 for None."""
    numbers: dict[str, int] = {}
    return np.array([-1 if one is None else numbers.setdefault(one, len(numbers)) for one in values], dtype=np.int64)
