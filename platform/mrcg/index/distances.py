"""Distances: squared L2, smaller is nearer, computed one way for everybody (DESIGN §3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mrcg.errors import require

Vectors = npt.NDArray[np.floating[Any]]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Distances = npt.NDArray[np.float32]

#: Vectors that are in memory as float32 at once while galleries are scanned.
BLOCK = 65_536


@dataclass(frozen=True)
class Neighbours:
    """What a search found, nearest first: (q, k) gallery rows, -1 where there are fewer, and squared L2, inf there."""

    rows_qk: Rows
    distances_qk: Distances


#: Numbers that are widened at once: in and out stay in the cache of a core.
_WIDEN = 2**17
#: Bits of a half that were shifted to where a float32 has them; what its exponent is short of then.
_SHIFTED, _SHORT = np.array(0x8FFFE000, dtype=np.uint32).view(np.int32)[()], np.float32(2.0**112)


def widen(halves_nd: npt.NDArray[np.float16], out_nd: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
    """(n, d) finite halves as float32, exactly; all at once, where NumPy and FAISS go one by one."""
    fp16 = np.ascontiguousarray(halves_nd)
    out = np.empty(fp16.shape, dtype=np.float32) if out_nd is None else out_nd
    source, target = fp16.reshape(-1).view(np.int16), out.reshape(-1)
    for start in range(0, source.size, _WIDEN):
        floats = target[start : start + _WIDEN]
        bits = floats.view(np.int32)
        np.copyto(bits, source[start : start + _WIDEN])
        np.left_shift(bits, 13, out=bits)
        np.bitwise_and(bits, _SHIFTED, out=bits)
        np.multiply(floats, _SHORT, out=floats)
    return out


def exact_distances(queries_qd: Vectors, vectors_qcd: Vectors) -> Distances:
    """(q, c) squared L2 of each query to its own c candidates, in float32.

    A distance depends on its two vectors alone, not on what else is in the batch: ties are real.
    """
    count, candidates, dim = vectors_qcd.shape
    places = np.arange(count * candidates, dtype=np.int64).reshape(count, candidates)
    return distances_to(queries_qd, vectors_qcd.reshape(-1, dim), places)


def distances_to(queries_qd: Vectors, vectors_nd: Vectors, rows_qc: Rows) -> Distances:
    """(q, c) the same to rows of some vectors, of which none is copied; -1 is inf."""
    faiss, (count, candidates) = require("faiss"), rows_qc.shape
    queries, vectors = (np.ascontiguousarray(one, dtype=np.float32) for one in (queries_qd, vectors_nd))
    rows, out = np.ascontiguousarray(rows_qc), np.empty((count, candidates), dtype=np.float32)
    if out.size:
        to, of, these, into = (faiss.swig_ptr(one) for one in (vectors, queries, rows, out))
        faiss.fvec_L2sqr_by_idx(into, of, to, these, vectors.shape[1], count, candidates)
    return out


def nearest(rows_qc: Rows, distances_qc: Distances, k: int) -> Neighbours:
    """The k nearest of candidates (row -1 pads), ties by gallery row; always k columns."""
    missing = k - rows_qc.shape[1]
    if missing <= 0 and rows_qc.min(initial=0) >= 0 and (distances_qc[:, 1:] > distances_qc[:, :-1]).all():
        return Neighbours(rows_qc[:, :k], distances_qc[:, :k])  # as most searches of FAISS leave it
    if missing > 0:
        rows_qc = np.pad(rows_qc, ((0, 0), (0, missing)), constant_values=-1)
        distances_qc = np.pad(distances_qc, ((0, 0), (0, missing)), constant_values=np.inf)
    distances_qc = np.where(rows_qc >= 0, distances_qc, np.float32(np.inf))
    order = _by_distance(rows_qc, distances_qc)[:, :k]
    return Neighbours(np.take_along_axis(rows_qc, order, 1), np.take_along_axis(distances_qc, order, 1))


def _by_distance(rows_qc: Rows, distances_qc: Distances) -> Rows:
    """(q, c) the order of candidates by distance, ties by gallery row."""
    order = np.argsort(distances_qc, axis=1)
    ordered = np.take_along_axis(distances_qc, order, 1)
    # Sorting by two keys takes longer, and ties are rare.
    tied = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
    if len(tied):
        order[tied] = np.lexsort((rows_qc[tied], distances_qc[tied]), axis=1)
    return order


def merge(parts: list[Neighbours], k: int) -> Neighbours:
    """The k nearest of several searches of the same queries; ties by gallery row."""
    rows = np.concatenate([part.rows_qk for part in parts], axis=1)
    distances = np.concatenate([part.distances_qk for part in parts], axis=1)
    return nearest(rows, distances, k)


def exact_search(queries_qd: Vectors, vectors_nd: Vectors, k: int) -> Rows:
    """(q, k) nearest rows by brute force over all vectors; ties by row, -1 where there are fewer."""
    queries = np.ascontiguousarray(queries_qd, dtype=np.float32)
    found: list[Neighbours] = []
    for start in range(0, len(vectors_nd), BLOCK):
        block = np.ascontiguousarray(vectors_nd[start : start + BLOCK], dtype=np.float32)
        rows = scan(queries, block, k)
        found.append(nearest(np.where(rows >= 0, rows + start, -1), distances_to(queries, block, rows), k))
        found = [merge(found, k)]
    return found[0].rows_qk if found else np.full((len(queries), k), -1, dtype=np.int64)


#: Candidates fetched beyond k, so that ties at the end are cut by row and not by FAISS's heap.
SLACK = 16


def scan(queries_qd: npt.NDArray[np.float32], block_nd: npt.NDArray[np.float32], k: int) -> Rows:
    """(q, c) rows of a block among which the k nearest are, c <= k + slack."""
    want = min(k + SLACK, len(block_nd))
    if len(queries_qd) > _AT_ONCE:
        starts = range(0, len(queries_qd), _AT_ONCE)
        return np.concatenate([scan(queries_qd[start : start + _AT_ONCE], block_nd, k) for start in starts])
    if len(queries_qd) < MANY or want == len(block_nd):
        return _one_by_one(queries_qd, block_nd, want)
    rough_qc, rows_qc = by_products(queries_qd, block_nd, want)
    # Each of three sums of d products is off by at most d units of rounding.
    error_q = np.float32(block_nd.shape[1] * 2.0**-23) * (_lengths(queries_qd) + _lengths(block_nd).max())
    # What was left out is farther than the k-th whatever the rounding did, unless too many are as near.
    unsure = np.flatnonzero(~(rough_qc[:, -1] - rough_qc[:, k - 1] > 2 * error_q))
    if len(unsure):
        rows_qc[unsure] = _one_by_one(queries_qd[unsure], block_nd, want)
    return rows_qc


#: Queries from which on products of matrices are faster, and those that are searched for together without.
MANY, _FEW = 16, 32
#: Queries, and vectors, that are multiplied at once.
_AT_ONCE, _COLUMNS = 1024, 8192


def _one_by_one(queries_qd: npt.NDArray[np.float32], block_nd: npt.NDArray[np.float32], want: int) -> Rows:
    """(q, want) nearest rows by the distances of ``exact_distances``."""
    # Of more at once FAISS would multiply matrices itself.
    starts = range(0, len(queries_qd), _FEW)
    found = [require("faiss").knn(queries_qd[start : start + _FEW], block_nd, want)[1] for start in starts]
    rows: Rows = np.concatenate(found) if found else np.empty((0, want), dtype=np.int64)
    return rows


def by_products(
    queries_qd: npt.NDArray[np.float32], vectors_nd: npt.NDArray[np.float32], count: int
) -> tuple[Distances, Rows]:
    """(q, count) the least |q|² + |x|² - 2qx with their rows, rising: as near as rounding lets them be.

    FAISS 1.15 multiplies matrices only for more than 500 queries of 256 dimensions, and is four times slower for fewer.
    """
    faiss, queries, many = require("faiss"), np.ascontiguousarray(queries_qd), len(queries_qd)
    dim, pointer = queries.shape[1], require("faiss").swig_ptr
    rough, rows = np.empty((many, count), dtype=np.float32), np.empty((many, count), dtype=np.int64)
    heaps = faiss.float_maxheap_array_t()
    heaps.nh, heaps.k, heaps.val, heaps.ids = many, count, pointer(rough), pointer(rows)
    heaps.heapify()
    distances = np.empty(many * min(_COLUMNS, len(vectors_nd)), dtype=np.float32)
    for start in range(0, len(vectors_nd), _COLUMNS):
        some = np.ascontiguousarray(vectors_nd[start : start + _COLUMNS])
        faiss.pairwise_L2sqr(dim, many, pointer(queries), len(some), pointer(some), pointer(distances))
        heaps.addn(len(some), pointer(distances), start)
    heaps.reorder()
    return rough, rows


def _lengths(vectors_nd: npt.NDArray[np.float32]) -> Distances:
    """(n,) squared."""
    lengths: Distances = np.einsum("nd,nd->n", vectors_nd, vectors_nd)
    return lengths


def recall_of(found: Neighbours, exact: Neighbours) -> float:
    """Share of the exact neighbours that a search found; of copies that tie with the last of them any is as good."""
    there = exact.rows_qk >= 0
    last = np.where(there, exact.distances_qk, np.float32(-np.inf)).max(axis=1, initial=-np.inf)
    hits = (found.rows_qk >= 0) & (found.distances_qk <= last[:, None])
    return float(hits.sum() / there.sum()) if there.any() else 1.0


def recall_at(found: Rows, exact: Rows) -> float:
    """Share of the exact neighbours that a search found: (q, k) rows against (q, k) rows, -1 pads."""
    hits = total = 0
    for mine, true in zip(found, exact, strict=True):
        wanted = set(true[true >= 0].tolist())
        hits += len(wanted & set(mine.tolist()))
        total += len(wanted)
    return hits / total if total else 1.0
