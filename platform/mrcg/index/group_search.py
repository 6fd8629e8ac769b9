"""The nearest groups: of each patient or study only the scan that is nearest (DESIGN §3)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mrcg.index.distances import Mask, Neighbours, Vectors
from mrcg.index.sharded_index import ShardedIndex

#: (rows,) the group of each gallery row, from 0 on.
Groups = npt.NDArray[np.int64]
#: Scans that are fetched for each group that is wanted.
OVER = 3


def numbered(codes: npt.NDArray[np.int64]) -> Groups:
    """Groups of codes; a row of code -1 (unknown) is a group of its own."""
    alone = codes < 0
    groups = codes.copy()
    groups[alone] = codes.max(initial=-1) + 1 + np.arange(np.count_nonzero(alone))
    return groups


def search_groups(
    index: ShardedIndex,
    queries_qd: Vectors,
    k: int,
    groups: Groups,
    allowed: Mask | None = None,
    nprobe_or_ef: int | None = None,
) -> Neighbours:
    """The nearest scan of each of the k nearest groups, nearest first.

    Fewer come back only where fewer groups are allowed. A group that is among the first scans found stands there with
    its nearest one, and what comes behind them is farther: so those that are missing are searched for among the rest.

    Args:
        index: that is searched.
        queries_qd: (q, d) embeddings.
        k: groups wanted.
        groups: (rows of the gallery,).
        allowed: (rows of the gallery,), None allows all.
        nprobe_or_ef: as of ``ShardedIndex.search``.
    """
    near = index.search(queries_qd, OVER * k, allowed, nprobe_or_ef)
    rows_qk = np.full((len(queries_qd), k), -1, dtype=np.int64)
    distances_qk = np.full((len(queries_qd), k), np.inf, dtype=np.float32)
    for place, query in enumerate(queries_qd):
        rows, distances = near.rows_qk[place], near.distances_qk[place]
        count, seen = 0, np.zeros(0, dtype=np.int64)
        while True:
            first = _firsts(groups, rows)[: k - count]
            rows_qk[place, count : count + len(first)] = rows[first]
            distances_qk[place, count : count + len(first)] = distances[first]
            count += len(first)
            if count == k or (rows < 0).any():  # the search gave less than it was asked for: that was all
                break
            seen = np.concatenate([seen, groups[rows[first]]])
            rest = _rest(groups, seen, allowed)
            if not rest.any():
                break
            more = index.search(query[None], OVER * (k - count), rest, nprobe_or_ef)
            rows, distances = more.rows_qk[0], more.distances_qk[0]
    return Neighbours(rows_qk, distances_qk)


def _firsts(groups: Groups, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Places of the first row of each group, in order; -1 are none."""
    real = np.flatnonzero(rows >= 0)
    first: npt.NDArray[np.int64] = np.sort(np.unique(groups[rows[real]], return_index=True)[1])
    return real[first]


def _rest(groups: Groups, seen: npt.NDArray[np.int64], allowed: Mask | None) -> Mask:
    """(rows,) what is allowed of the groups that were not seen."""
    done = np.zeros(int(groups.max(initial=-1)) + 1, dtype=bool)
    done[seen] = True
    rest: Mask = ~done[groups]
    return rest if allowed is None else rest & allowed
