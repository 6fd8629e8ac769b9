"""One shard: a FAISS index, the exact fp16 vectors beside it, and which scan each row is.

FAISS finds candidates; their distances are then computed again from the fp16 vectors, always by the
same arithmetic. So a distance does not depend on the batch or on the kind of index, and ties are real.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mrcg import schemas
from mrcg.config import IndexSettings
from mrcg.errors import require

Vectors = npt.NDArray[np.floating[Any]]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

#: Candidates fetched beyond k, so that ties at the end are cut by row and not by FAISS's heap.
SLACK = 16
#: FAISS wants at least this many training vectors per coarse cell.
VECTORS_PER_LIST = 39


@dataclass(frozen=True)
class Neighbours:
    """What a search found, nearest first: (q, k) rows, -1 where there are fewer, and squared L2, inf there."""

    rows_qk: Rows
    distances_qk: npt.NDArray[np.float32]


def build_faiss(vectors_nd: Vectors, settings: IndexSettings, seed: int) -> bytes:
    """A FAISS index over vectors, serialised. One thread builds it: equal input, equal bytes.

    Args:
        vectors_nd: (n, d), n may be 0.
        settings: kind and its parameters.
        seed: of the coarse quantiser.
    """
    faiss = require("faiss")
    count, dim = vectors_nd.shape
    data = np.ascontiguousarray(vectors_nd, dtype=np.float32)
    lists = min(settings.lists, count // VECTORS_PER_LIST)
    if settings.kind == "ivf_flat" and lists > 1:
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(dim), dim, lists)
        index.cp.seed = seed % 2**31
        index.train(data)
    else:
        index = faiss.IndexFlatL2(dim)
    if count:
        index.add(data)
    return bytes(faiss.serialize_index(index))


class Shard:
    """A shard in memory, ready to be searched.

    Args:
        index: serialised FAISS index.
        vectors_nd: (n, d) fp16.
        rows: table of ``schemas.ROWS``, in the index's row order.
    """

    def __init__(self, index: bytes, vectors_nd: npt.NDArray[np.float16], rows: pa.Table) -> None:
        self._faiss = require("faiss")
        self._index = self._faiss.deserialize_index(np.frombuffer(index, dtype=np.uint8))
        self.vectors_nd = vectors_nd
        self.rows: Rows = rows["row"].to_numpy().astype(np.int64)
        self.table = rows
        assert self._index.ntotal == len(self.rows) == len(vectors_nd)

    def search(self, queries_qd: Vectors, k: int, allowed: Mask | None, probes: int) -> Neighbours:
        """The k nearest allowed rows of this shard, by exact squared L2; ties by row.

        Args:
            queries_qd: (q, d).
            k: how many, fewer where the shard has fewer.
            allowed: over all rows of the gallery (not of the shard); None allows all.
            probes: coarse cells searched, for an IVF index.
        """
        queries = np.ascontiguousarray(queries_qd, dtype=np.float32)
        mask = None if allowed is None else allowed[self.rows]
        reachable = len(self.rows) if mask is None else int(mask.sum())
        want = min(k, reachable)
        found = self._candidates(queries, min(k + SLACK, max(reachable, 1)), mask, probes)
        assert mask is None or mask[found[found >= 0]].all(), "a search returned a row that is not allowed"
        result = self._exact(queries, found, k)
        short = np.flatnonzero((result.rows_qk >= 0).sum(axis=1) < want)
        if len(short):
            # An approximate search may find fewer than exist: never answer less without a word.
            everything = np.flatnonzero(mask) if mask is not None else np.arange(len(self.rows))
            for query in short.tolist():
                exact = self._exact(queries[query : query + 1], everything[None, :], k)
                result.rows_qk[query], result.distances_qk[query] = exact.rows_qk[0], exact.distances_qk[0]
        return result

    def _candidates(self, queries: Vectors, k: int, mask: Mask | None, probes: int) -> Rows:
        if self._index.ntotal == 0:
            return np.full((len(queries), 1), -1, dtype=np.int64)
        selector = None
        if mask is not None:
            bitmap = np.packbits(mask, bitorder="little")
            selector = self._faiss.IDSelectorBitmap(len(bitmap) * 8, self._faiss.swig_ptr(bitmap))
        if hasattr(self._index, "nlist"):
            parameters = self._faiss.SearchParametersIVF(sel=selector, nprobe=probes)
        else:
            parameters = self._faiss.SearchParameters(sel=selector)
        _, found = self._index.search(queries, k, params=parameters)
        rows: Rows = found
        return rows

    def _exact(self, queries: Vectors, found_qc: Rows, k: int) -> Neighbours:
        """Order candidates (local rows, -1 pads) by exact distance, then by gallery row; keep k."""
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        distances = np.full((len(queries), k), np.inf, dtype=np.float32)
        for query, candidates in enumerate(found_qc):
            local = candidates[candidates >= 0]
            exact = exact_distances(queries[query], self.vectors_nd[local])
            order = np.lexsort((self.rows[local], exact))[:k]
            rows[query, : len(order)] = self.rows[local[order]]
            distances[query, : len(order)] = exact[order]
        return Neighbours(rows, distances)

    def to_files(self, number: int) -> dict[str, bytes]:
        """The shard's files by name, as ``read`` wants them."""
        vectors = io.BytesIO()
        np.save(vectors, self.vectors_nd, allow_pickle=False)
        index = bytes(self._faiss.serialize_index(self._index))
        names = shard_files(number)
        return dict(zip(names, (index, vectors.getvalue(), schemas.to_parquet(self.table)), strict=True))

    @classmethod
    def read(cls, index: bytes, vectors: bytes, rows: bytes) -> Shard:
        """A shard from the contents of its files."""
        return cls(index, np.load(io.BytesIO(vectors), allow_pickle=False), schemas.from_parquet(rows))


def shard_files(number: int) -> tuple[str, str, str]:
    """Names of a shard's files: FAISS index, vectors, rows."""
    stem = f"shards/{number:05d}"
    return f"{stem}.faiss", f"{stem}.vectors.npy", f"{stem}.rows.parquet"


def exact_distances(query_d: Vectors, vectors_nd: Vectors) -> npt.NDArray[np.float32]:
    """(n,) squared L2 distances from a query to vectors, in float32, one way for everybody."""
    difference = vectors_nd.astype(np.float32) - query_d.astype(np.float32)
    distances: npt.NDArray[np.float32] = np.square(difference).sum(axis=1)
    return distances
