"""Neighbour lists of queries, optionally without the query's own group (docs/method.md#query-graph)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mrcg.arrays import Codes, Mask, RowNumbers
from mrcg.index.distances import Neighbours, nearest


def largest_group(groups: Codes, queries: RowNumbers, allowed: Mask) -> int:
    """Return the size, among the allowed images, of the largest group of any query: the most that may be excluded."""
    if not len(queries):
        return 0
    sizes = np.bincount(groups[allowed], minlength=int(groups.max()) + 1)
    return int(sizes[groups[queries]].max())


def without_own_group(near: Neighbours, queries: RowNumbers, groups: Codes, n: int) -> Neighbours:
    """Return the n nearest neighbours of each query that are not in its own group."""
    excluded = (groups[near.rows_qk] == groups[queries][:, None]) | (near.rows_qk < 0)
    distances = np.where(excluded, np.float32(np.inf), near.distances_qk).astype(np.float32)
    return nearest(np.where(excluded, -1, near.rows_qk), distances, n)


def codes_of(values: Sequence[str | None]) -> Codes:
    """Return a number for each value, equal for equal values and in order of first appearance; -1 for None."""
    numbers: dict[str, int] = {}
    codes = [-1 if value is None else numbers.setdefault(value, len(numbers)) for value in values]
    return np.array(codes, dtype=np.int64)
