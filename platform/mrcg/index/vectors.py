"""The exact fp16 vectors of all parts that are open, and exact distances to them (DESIGN §4)."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mrcg.errors import require
from mrcg.index.distances import Distances, Rows
from mrcg.index.part import Part

#: Vectors that are decoded at once: so many of usual width stay in the cache of a core.
BLOCK = 1024

Queries = npt.NDArray[np.float32]


class _Buffers(threading.local):
    """Memory that a thread uses again: what is allocated anew for each search costs more than what is done in it."""

    def __init__(self) -> None:
        self.fp16 = np.empty((0, 0), dtype=np.float16)
        self.floats = np.empty((0, 0), dtype=np.float32)


class StoredVectors:
    """The exact vectors of all parts, by place: the order of the rows that are there.

    Args:
        parts: of the index.
        dim: of a vector.
    """

    def __init__(self, parts: Sequence[Part], dim: int) -> None:
        self._parts = parts
        self.dim = dim
        rows = np.concatenate([np.empty(0, np.int64), *(part.rows for part in parts)])
        order = np.argsort(rows, kind="stable")
        order = order[np.searchsorted(rows[order], 0) :]
        #: (places,) gallery rows, rising.
        self.rows: Rows = rows[order]
        #: Whether places and rows are the same: nothing is gone, and all shards are open.
        self.in_order = not len(order) or int(self.rows[-1]) == len(order) - 1
        starts = np.cumsum([0, *(len(part) for part in parts)])
        self._owner = (np.searchsorted(starts, order, side="right") - 1).astype(np.int32)
        self._local = order - starts[self._owner]
        self._buffers = _Buffers()
        faiss = require("faiss")
        #: Takes one vector at a time, but all threads that FAISS has.
        self._decoder = faiss.ScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16)

    def __len__(self) -> int:
        return len(self.rows)

    def places_of(self, number: int) -> Rows:
        """(n,) place of each row of a part, -1 where it is gone."""
        places = np.full(len(self._parts[number]), -1, dtype=np.int64)
        here = np.flatnonzero(self._owner == number)
        places[self._local[here]] = here
        return places

    def fp16(self, places: Rows) -> npt.NDArray[np.float16]:
        """(n, d) vectors of places."""
        out = np.empty((len(places), self.dim), dtype=np.float16)
        order = self._gather(places, out)
        if order is None:
            return out
        back = np.empty_like(out)
        back[order] = out
        return back

    def distances(self, queries_qd: Queries, places_qc: Rows) -> Distances:
        """(q, c) exact squared L2 of each query to its own places, as by ``metric.exact_distances``; -1 is inf."""
        faiss, (count, width) = require("faiss"), places_qc.shape
        out, step, pointer = np.empty((count, width), dtype=np.float32), max(1, BLOCK // max(1, width)), faiss.swig_ptr
        most = min(step, count) * width
        if len(self._buffers.fp16) < most:
            self._buffers.fp16 = np.empty((most, self.dim), dtype=np.float16)
            self._buffers.floats = np.empty((most, self.dim), dtype=np.float32)
        queries_qd = np.ascontiguousarray(queries_qd)
        for start in range(0, count if width else 0, step):
            places = places_qc[start : start + step].reshape(-1)
            fp16, floats = self._buffers.fp16[: len(places)], self._buffers.floats[: len(places)]
            order = self._gather(np.maximum(places, 0), fp16)
            self._decoder.decode_c(pointer(fp16.view(np.uint8)), pointer(floats), len(places))
            ids = np.arange(len(places))
            if order is not None:
                ids[order] = np.arange(len(places))
            ids[places < 0] = -1
            some, queries = out[start : start + step], queries_qd[start : start + step]
            faiss.fvec_L2sqr_by_idx(
                pointer(some), pointer(queries), pointer(floats), pointer(ids), self.dim, len(some), width
            )
        return out

    def _gather(self, places: Rows, out_nd: npt.NDArray[np.float16]) -> Rows | None:
        """Copy vectors of places, part by part; which of the places each copied one is, None where all are in order."""
        local = self._local[places]
        if len(self._parts) == 1:
            np.take(self._parts[0].vectors_nd, local, axis=0, out=out_nd, mode="clip")
            return None
        owner = self._owner[places]
        order = np.argsort(owner, kind="stable")
        ends = np.searchsorted(owner, np.arange(len(self._parts)), side="right", sorter=order)
        local, start = local[order], 0
        for part, end in zip(self._parts, ends.tolist(), strict=True):
            if end > start:
                np.take(part.vectors_nd, local[start:end], axis=0, out=out_nd[start:end], mode="clip")
            start = end
        return order
