"""The exact fp16 vectors of all open parts, and exact distances to them (docs/design.md#search)."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mrcg.arrays import Distances, Fp32Vectors, RowNumbers
from mrcg.errors import require
from mrcg.index.part import Part

#: Vectors decoded at a time: at usual widths they fit into the cache of a core.
BLOCK = 1024


class _Buffers(threading.local):
    """Memory that each thread reuses: allocating it for every search takes longer than the search itself."""

    def __init__(self) -> None:
        self.fp16 = np.empty((0, 0), dtype=np.float16)
        self.floats = np.empty((0, 0), dtype=np.float32)


class StoredVectors:
    """The exact vectors of all open parts, addressed by position.

    Positions number the open rows that are not deleted, in ascending order of their gallery rows.

    Args:
        parts: of the index.
        dim: of a vector.

    Attributes:
        rows: (positions,) gallery rows, ascending.
        in_order: whether positions equal gallery rows: no row is deleted, and all shards are open.
    """

    def __init__(self, parts: Sequence[Part], dim: int) -> None:
        self._parts = parts
        self.dim = dim
        rows = np.concatenate([np.empty(0, np.int64), *(part.rows for part in parts)])
        order = np.argsort(rows, kind="stable")
        order = order[np.searchsorted(rows[order], 0) :]
        self.rows: RowNumbers = rows[order]
        self.in_order = not len(order) or int(self.rows[-1]) == len(order) - 1
        starts = np.cumsum([0, *(len(part) for part in parts)])
        self._owner = (np.searchsorted(starts, order, side="right") - 1).astype(np.int32)
        self._local = order - starts[self._owner]
        self._buffers = _Buffers()
        faiss = require("faiss")
        #: Decodes one vector at a time, but on all FAISS threads.
        self._decoder = faiss.ScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16)

    def __len__(self) -> int:
        return len(self.rows)

    def positions_of(self, number: int) -> RowNumbers:
        """Return the (n,) position of each row of a part, -1 where the row is deleted."""
        positions = np.full(len(self._parts[number]), -1, dtype=np.int64)
        owned = np.flatnonzero(self._owner == number)
        positions[self._local[owned]] = owned
        return positions

    def fp16(self, positions: RowNumbers) -> npt.NDArray[np.float16]:
        """Return the (n, d) vectors at positions."""
        gathered = np.empty((len(positions), self.dim), dtype=np.float16)
        order = self._gather(positions, gathered)
        if order is None:
            return gathered
        out = np.empty_like(gathered)
        out[order] = gathered
        return out

    def distances(self, queries_qd: Fp32Vectors, positions_qc: RowNumbers) -> Distances:
        """Return the (q, c) exact squared L2 of each query to its own positions; inf for -1.

        The result equals that of ``distances_to`` to the last bit.
        """
        faiss, (count, width) = require("faiss"), positions_qc.shape
        out, step, pointer = np.empty((count, width), dtype=np.float32), max(1, BLOCK // max(1, width)), faiss.swig_ptr
        size = min(step, count) * width
        if len(self._buffers.fp16) < size:
            self._buffers.fp16 = np.empty((size, self.dim), dtype=np.float16)
            self._buffers.floats = np.empty((size, self.dim), dtype=np.float32)
        queries_qd = np.ascontiguousarray(queries_qd)
        for start in range(0, count if width else 0, step):
            positions = positions_qc[start : start + step].reshape(-1)
            fp16, floats = self._buffers.fp16[: len(positions)], self._buffers.floats[: len(positions)]
            order = self._gather(np.maximum(positions, 0), fp16)
            self._decoder.decode_c(pointer(fp16.view(np.uint8)), pointer(floats), len(positions))
            ids = np.arange(len(positions))
            if order is not None:
                ids[order] = np.arange(len(positions))
            ids[positions < 0] = -1
            batch, queries = out[start : start + step], queries_qd[start : start + step]
            faiss.fvec_L2sqr_by_idx(
                pointer(batch), pointer(queries), pointer(floats), pointer(ids), self.dim, len(batch), width
            )
        return out

    def _gather(self, positions: RowNumbers, out_nd: npt.NDArray[np.float16]) -> RowNumbers | None:
        """Copy the vectors at positions into ``out_nd``, part by part.

        Returns:
            For each copied vector, the index of its position in ``positions``; None where they are in the same order.
        """
        local = self._local[positions]
        if len(self._parts) == 1:
            np.take(self._parts[0].vectors_nd, local, axis=0, out=out_nd, mode="clip")
            return None
        owner = self._owner[positions]
        order = np.argsort(owner, kind="stable")
        ends = np.searchsorted(owner, np.arange(len(self._parts)), side="right", sorter=order)
        local, start = local[order], 0
        for part, end in zip(self._parts, ends.tolist(), strict=True):
            if end > start:
                np.take(part.vectors_nd, local[start:end], axis=0, out=out_nd[start:end], mode="clip")
            start = end
        return order
