"""What the fast routines of the library are compared with: the same results in a plain way."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mrcg.arrays import Distances, Mask, RowNumbers, Vectors
from mrcg.index.distances import Neighbours, distances_to
from mrcg.index.sharded_index import ShardedIndex
from mrcg.reranker.neighbours import largest_group, without_own_group


def exact_distances(queries_qd: Vectors, vectors_qcd: Vectors) -> Distances:
    """Return the (q, c) squared L2 of each query to its own c candidates, in float32."""
    count, candidates, dim = vectors_qcd.shape
    rows = np.arange(count * candidates, dtype=np.int64).reshape(count, candidates)
    return distances_to(queries_qd, vectors_qcd.reshape(-1, dim), rows)


def shard_of(site: str | None, image_id: str, sites: Mapping[str, tuple[int, int]], shards: int) -> int:
    """Return the shard of an image: one of its site's shards, chosen by the first 15 digits of its id."""
    first, count = sites.get(site or "", (0, shards))
    return first + int(image_id[:15], 16) % count


def neighbour_lists(
    index: ShardedIndex, queries: RowNumbers, allowed: Mask, n: int, exclude_own_group: bool
) -> Neighbours:
    """Return the n nearest allowed images of each query image.

    Args:
        index: index of all scans, including the queries.
        queries: (q,) gallery rows.
        allowed: (rows,) True for images that may be neighbours.
        n: neighbours per query; lists are padded with -1 if fewer images are allowed.
        exclude_own_group: leave out the query itself and all other images of its group.

    Returns:
        (q, n) rows and squared L2 distances, nearest first.
    """
    vectors = index.vectors(queries)
    if not exclude_own_group:
        return index.search(vectors, n, allowed)
    groups = index.gallery.codes("group_id")
    near = index.search(vectors, n + largest_group(groups, queries, allowed), allowed)
    return without_own_group(near, queries, groups, n)
