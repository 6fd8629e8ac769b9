"""Neighbour lists of queries, without the query's own group (DESIGN §3)."""

from __future__ import annotations

from collections import Counter

import numpy as np

from mrcg.index.shard import Mask, Neighbours, Rows
from mrcg.index.sharded import ShardedIndex


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
    sizes = Counter(group for group, ok in zip(index.groups, allowed, strict=True) if ok)
    extra = max((sizes[index.groups[q]] for q in queries.tolist()), default=0)
    found = index.search(vectors, n + extra, allowed)
    groups = np.array([*index.groups, ""])  # row -1, a pad, has no group
    own = groups[found.rows_qk] == groups[queries][:, None]
    # A stable sort moves the own group behind the others and keeps the others' order.
    order = np.argsort(own, axis=1, kind="stable")[:, :n]
    rows = np.take_along_axis(np.where(own, -1, found.rows_qk), order, 1)
    distances = np.take_along_axis(np.where(own, np.float32(np.inf), found.distances_qk), order, 1)
    return Neighbours(rows, distances)
