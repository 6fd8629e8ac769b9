"""Squared L2 distances, smaller is nearer, always computed by the same routine (docs/design.md#search)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrcg.arrays import Distances, RowNumbers, Vectors
from mrcg.errors import require

#: Vectors held in memory as float32 at a time while a gallery is scanned.
BLOCK = 65_536


@dataclass(frozen=True)
class Neighbours:
    """Results of a search, nearest first.

    Attributes:
        rows_qk: (q, k) gallery rows, -1 where there are fewer than k.
        distances_qk: (q, k) squared L2, inf where the row is -1.
    """

    rows_qk: RowNumbers
    distances_qk: Distances


#: Numbers converted at a time: input and output fit into the cache of a core.
_WIDEN_BLOCK = 2**17
#: Sign, exponent and mantissa of an fp16 once its bits are shifted to their place in a float32.
_FP16_BITS = np.array(0x8FFFE000, dtype=np.uint32).view(np.int32)[()]
#: Corrects the exponent after the shift: the biases differ by 127 - 15 = 112.
_EXPONENT_SCALE = np.float32(2.0**112)


def widen(fp16_nd: npt.NDArray[np.float16], out_nd: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
    """Convert (n, d) finite fp16 numbers to float32, exactly.

    Works on whole arrays of bits; NumPy and FAISS convert one number at a time, which is slower.
    """
    fp16 = np.ascontiguousarray(fp16_nd)
    out = np.empty(fp16.shape, dtype=np.float32) if out_nd is None else out_nd
    source, target = fp16.reshape(-1).view(np.int16), out.reshape(-1)
    for start in range(0, source.size, _WIDEN_BLOCK):
        floats = target[start : start + _WIDEN_BLOCK]
        bits = floats.view(np.int32)
        np.copyto(bits, source[start : start + _WIDEN_BLOCK])
        np.left_shift(bits, 13, out=bits)
        np.bitwise_and(bits, _FP16_BITS, out=bits)
        np.multiply(floats, _EXPONENT_SCALE, out=floats)
    return out


def distances_to(queries_qd: Vectors, vectors_nd: Vectors, rows_qc: RowNumbers) -> Distances:
    """Return the (q, c) squared L2 of each query to its own c rows of ``vectors_nd``, in float32; inf for row -1.

    A distance depends only on its two vectors, not on the rest of the batch, so equal distances are real ties.
    """
    faiss, (count, candidates) = require("faiss"), rows_qc.shape
    queries, vectors = (np.ascontiguousarray(array, dtype=np.float32) for array in (queries_qd, vectors_nd))
    rows, out = np.ascontiguousarray(rows_qc), np.empty((count, candidates), dtype=np.float32)
    if out.size:
        pointer = faiss.swig_ptr
        faiss.fvec_L2sqr_by_idx(
            pointer(out), pointer(queries), pointer(vectors), pointer(rows), vectors.shape[1], count, candidates
        )
    return out


def nearest(rows_qc: RowNumbers, distances_qc: Distances, k: int) -> Neighbours:
    """Return the k nearest candidates, ties ordered by gallery row; row -1 is padding. Always k columns."""
    missing = k - rows_qc.shape[1]
    if missing <= 0 and rows_qc.min(initial=0) >= 0 and (distances_qc[:, 1:] > distances_qc[:, :-1]).all():
        return Neighbours(rows_qc[:, :k], distances_qc[:, :k])  # most FAISS searches return them sorted
    if missing > 0:
        rows_qc = np.pad(rows_qc, ((0, 0), (0, missing)), constant_values=-1)
        distances_qc = np.pad(distances_qc, ((0, 0), (0, missing)), constant_values=np.inf)
    distances_qc = np.where(rows_qc >= 0, distances_qc, np.float32(np.inf))
    order = _by_distance(rows_qc, distances_qc)[:, :k]
    return Neighbours(np.take_along_axis(rows_qc, order, 1), np.take_along_axis(distances_qc, order, 1))


def _by_distance(rows_qc: RowNumbers, distances_qc: Distances) -> RowNumbers:
    """Return the (q, c) order of candidates by distance, ties by gallery row."""
    order = np.argsort(distances_qc, axis=1)
    ordered = np.take_along_axis(distances_qc, order, 1)
    # Sorting by two keys takes longer, and ties are rare.
    tied = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
    if len(tied):
        order[tied] = np.lexsort((rows_qc[tied], distances_qc[tied]), axis=1)
    return order


def merge(parts: list[Neighbours], k: int) -> Neighbours:
    """Return the k nearest over several searches of the same queries, ties ordered by gallery row."""
    rows = np.concatenate([part.rows_qk for part in parts], axis=1)
    distances = np.concatenate([part.distances_qk for part in parts], axis=1)
    return nearest(rows, distances, k)


def exact_search(queries_qd: Vectors, vectors_nd: Vectors, k: int) -> RowNumbers:
    """Return the (q, k) nearest rows by brute force, ties ordered by row; -1 where there are fewer than k vectors."""
    queries = np.ascontiguousarray(queries_qd, dtype=np.float32)
    best: Neighbours | None = None
    for start in range(0, len(vectors_nd), BLOCK):
        block = np.ascontiguousarray(vectors_nd[start : start + BLOCK], dtype=np.float32)
        rows = scan(queries, block, k)
        near = nearest(np.where(rows >= 0, rows + start, -1), distances_to(queries, block, rows), k)
        best = near if best is None else merge([best, near], k)
    return np.full((len(queries), k), -1, dtype=np.int64) if best is None else best.rows_qk


#: Candidates fetched beyond k, so that ties at the k-th place are cut by row and not by FAISS's heap.
SLACK = 16


def scan(queries_qd: npt.NDArray[np.float32], block_nd: npt.NDArray[np.float32], k: int) -> RowNumbers:
    """Return (q, c) rows of a block that include the k nearest of each query, c <= k + SLACK."""
    count = min(k + SLACK, len(block_nd))
    if len(queries_qd) > _QUERY_BATCH:
        starts = range(0, len(queries_qd), _QUERY_BATCH)
        return np.concatenate([scan(queries_qd[start : start + _QUERY_BATCH], block_nd, k) for start in starts])
    if len(queries_qd) < MATMUL_QUERIES or count == len(block_nd):
        return _direct_knn(queries_qd, block_nd, count)
    rough_qc, rows_qc = matmul_knn(queries_qd, block_nd, count)
    # Each of the three sums of d products has a rounding error of at most d units in the last place.
    error_q = np.float32(block_nd.shape[1] * 2.0**-23) * (_squared_norms(queries_qd) + _squared_norms(block_nd).max())
    # Whatever the rounding, rows that were left out are farther than the k-th, unless too many are about as near.
    unsure = np.flatnonzero(~(rough_qc[:, -1] - rough_qc[:, k - 1] > 2 * error_q))
    if len(unsure):
        rows_qc[unsure] = _direct_knn(queries_qd[unsure], block_nd, count)
    return rows_qc


#: From this many queries on, matrix products are faster than computing each distance directly.
MATMUL_QUERIES = 16
#: Queries searched for together without matrix products.
_DIRECT_BATCH = 32
#: Queries, and vectors, multiplied at a time.
_QUERY_BATCH, _VECTOR_BATCH = 1024, 8192


def _direct_knn(queries_qd: npt.NDArray[np.float32], block_nd: npt.NDArray[np.float32], count: int) -> RowNumbers:
    """Return the (q, count) nearest rows by the distances of ``distances_to``."""
    # With larger batches FAISS itself would switch to matrix products.
    knn, starts = require("faiss").knn, range(0, len(queries_qd), _DIRECT_BATCH)
    batches = [knn(queries_qd[start : start + _DIRECT_BATCH], block_nd, count)[1] for start in starts]
    rows: RowNumbers = np.concatenate(batches) if batches else np.empty((0, count), dtype=np.int64)
    return rows


def matmul_knn(
    queries_qd: npt.NDArray[np.float32], vectors_nd: npt.NDArray[np.float32], count: int
) -> tuple[Distances, RowNumbers]:
    """Return the (q, count) smallest |q|² + |x|² - 2qx, ascending, and their rows; exact up to rounding.

    FAISS 1.15 multiplies matrices only for more than 500 queries of 256 dimensions, and is four times slower for fewer.
    """
    faiss, queries, query_count = require("faiss"), np.ascontiguousarray(queries_qd), len(queries_qd)
    dim, pointer = queries.shape[1], require("faiss").swig_ptr
    rough, rows = np.empty((query_count, count), dtype=np.float32), np.empty((query_count, count), dtype=np.int64)
    heaps = faiss.float_maxheap_array_t()
    heaps.nh, heaps.k, heaps.val, heaps.ids = query_count, count, pointer(rough), pointer(rows)
    heaps.heapify()
    distances = np.empty(query_count * min(_VECTOR_BATCH, len(vectors_nd)), dtype=np.float32)
    for start in range(0, len(vectors_nd), _VECTOR_BATCH):
        batch = np.ascontiguousarray(vectors_nd[start : start + _VECTOR_BATCH])
        faiss.pairwise_L2sqr(dim, query_count, pointer(queries), len(batch), pointer(batch), pointer(distances))
        heaps.addn(len(batch), pointer(distances), start)
    heaps.reorder()
    return rough, rows


def _squared_norms(vectors_nd: npt.NDArray[np.float32]) -> Distances:
    """Return the (n,) squared L2 norms."""
    norms: Distances = np.einsum("nd,nd->n", vectors_nd, vectors_nd)
    return norms


def recall_with_ties(found: Neighbours, exact: Neighbours) -> float:
    """Return the share of exact neighbours that a search found; a row that ties with the last neighbour counts, too.

    Copies of one image are equally near, so it does not matter which of them are found.
    """
    exists = exact.rows_qk >= 0
    last = np.where(exists, exact.distances_qk, np.float32(-np.inf)).max(axis=1, initial=-np.inf)
    hits = (found.rows_qk >= 0) & (found.distances_qk <= last[:, None])
    return float(hits.sum() / exists.sum()) if exists.any() else 1.0


def recall_at(found: RowNumbers, exact: RowNumbers) -> float:
    """Return the share of exact neighbours that a search found, by row: both (q, k), -1 is padding."""
    hits = total = 0
    for found_rows, exact_rows in zip(found, exact, strict=True):
        true = set(exact_rows[exact_rows >= 0].tolist())
        hits += len(true & set(found_rows.tolist()))
        total += len(true)
    return hits / total if total else 1.0
