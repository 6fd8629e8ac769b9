"""Search by group: the nearest scan of each of the k nearest patients or studies (docs/design.md#search)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mrcg.arrays import Mask, Vectors
from mrcg.index.distances import Neighbours
from mrcg.index.sharded_index import ShardedIndex

#: (rows,) the group of each gallery row, numbered from 0.
Groups = npt.NDArray[np.int64]
#: Scans fetched for each group that is still missing.
OVERFETCH = 3


def groups_from_codes(codes: npt.NDArray[np.int64]) -> Groups:
    """Return the group of each row from its code; each row of code -1 (unknown) is a group of its own."""
    unknown = codes < 0
    groups = codes.copy()
    groups[unknown] = codes.max(initial=-1) + 1 + np.arange(np.count_nonzero(unknown))
    return groups


def search_groups(
    index: ShardedIndex,
    queries_qd: Vectors,
    k: int,
    groups: Groups,
    allowed: Mask | None = None,
    nprobe_or_ef: int | None = None,
) -> Neighbours:
    """Return the nearest scan of each of the k nearest groups, nearest first.

    Fewer than k come back only where fewer groups are allowed. The first hit of a group is its nearest scan, and all
    groups that a search did not return are farther, so missing groups are searched for among the remaining ones.

    Args:
        index: to search.
        queries_qd: (q, d) embeddings.
        k: number of groups.
        groups: (rows of the gallery,) the group of each row.
        allowed: (rows of the gallery,) mask; None allows all.
        nprobe_or_ef: as in ``ShardedIndex.search``.
    """
    near = index.search(queries_qd, OVERFETCH * k, allowed, nprobe_or_ef)
    rows_qk = np.full((len(queries_qd), k), -1, dtype=np.int64)
    distances_qk = np.full((len(queries_qd), k), np.inf, dtype=np.float32)
    for number, query in enumerate(queries_qd):
        rows, distances = near.rows_qk[number], near.distances_qk[number]
        count, seen = 0, np.zeros(0, dtype=np.int64)
        while True:
            first = _first_of_groups(groups, rows)[: k - count]
            rows_qk[number, count : count + len(first)] = rows[first]
            distances_qk[number, count : count + len(first)] = distances[first]
            count += len(first)
            if count == k or (rows < 0).any():  # padding means that the search returned all there is
                break
            seen = np.concatenate([seen, groups[rows[first]]])
            remaining = _allowed_in_other_groups(groups, seen, allowed)
            if not remaining.any():
                break
            more = index.search(query[None], OVERFETCH * (k - count), remaining, nprobe_or_ef)
            rows, distances = more.rows_qk[0], more.distances_qk[0]
    return Neighbours(rows_qk, distances_qk)


def _first_of_groups(groups: Groups, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the ascending indices of the first row of each group; rows of -1 are ignored."""
    real = np.flatnonzero(rows >= 0)
    first: npt.NDArray[np.int64] = np.sort(np.unique(groups[rows[real]], return_index=True)[1])
    return real[first]


def _allowed_in_other_groups(groups: Groups, seen: npt.NDArray[np.int64], allowed: Mask | None) -> Mask:
    """Return a (rows,) mask of the allowed rows whose group is not in ``seen``."""
    done = np.zeros(int(groups.max(initial=-1)) + 1, dtype=bool)
    done[seen] = True
    remaining: Mask = ~done[groups]
    return remaining if allowed is None else remaining & allowed
