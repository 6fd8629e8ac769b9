"""Search over all open shards of an index, with filters and tombstones (docs/index.md#filters-and-tombstones)."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from mrcg.arrays import Fp32Vectors, Mask, RowNumbers, Vectors
from mrcg.errors import IntegrityError
from mrcg.index.distances import BLOCK, SLACK, Neighbours, distances_to, merge, nearest, scan, widen
from mrcg.index.engines import Candidates, assemble
from mrcg.index.layout import FACTS, IndexFacts, Shape
from mrcg.index.metadata import Gallery
from mrcg.index.part import Part
from mrcg.index.vectors import StoredVectors
from mrcg.storage.store import Artefact

#: If a filter allows at most this many rows, all of them are scanned: faster than a filtered search, and exact.
SCAN_BELOW = 20_000
#: Candidates fetched from a graph beyond k, because its distances differ from the exact ones in the last bits. If more
#: copies than this tie at the k-th place, the graph decides which of them are cut.
HNSW_SLACK = 4
#: A filter multiplies nprobe or ef_search by the inverse of the share it allows, up to this factor.
MAX_FILTER_FACTOR = 16
#: Queries searched for together.
BATCH = 256


class ShardedIndex:
    """A gallery, or some of its shards, open for search. Rows are those of the corpus table of scans.

    Internally, rows are addressed by position: the open rows that are not deleted, in ascending order.

    Args:
        shape: of the index.
        parts: of all shards, or of the shards to search.
        nprobe_or_ef: default nprobe (IVF) or ef_search (HNSW) of a search.
        mapped: leave on disk what FAISS can map; worth it for a few searches only.
    """

    def __init__(self, shape: Shape, parts: Sequence[Part], nprobe_or_ef: int, mapped: bool = False) -> None:
        self.shape = shape
        self.nprobe_or_ef = nprobe_or_ef
        self.parts = tuple(parts)
        self._stored = StoredVectors(parts, shape.dim)
        self._engine = assemble(shape, parts, self._stored, mapped)
        self._tombstoned: Mask | None = None

    def __len__(self) -> int:
        return len(self.gallery)

    @functools.cached_property
    def gallery(self) -> Gallery:
        """Metadata of each row, loaded on first use: measuring recall does not need it."""
        return Gallery([part.table for part in self.parts])

    @classmethod
    def open(cls, artefact: Artefact, shards: Collection[int] | None = None) -> ShardedIndex:
        """Load an index, or some of its shards; the hash of every file is checked before it is used.

        Raises:
            IntegrityError: a file does not match its manifest, or ``index.json`` cannot be read.
        """
        facts = read_facts(artefact)
        part_facts = [part for part in facts.parts if shards is None or part.shard in shards]
        parts = [Part.open(artefact.on_disk, facts.shape, part) for part in part_facts]
        return cls(facts.shape, parts, facts.nprobe_or_ef)

    def tombstone(self, image_ids: Sequence[str]) -> None:
        """Exclude images from all later searches; images that are not open here are ignored."""
        rows = self.gallery.rows_of(image_ids)
        if len(rows):
            # A new array: a search that is running keeps the mask it started with.
            tombstoned = np.zeros(len(self), dtype=bool) if self._tombstoned is None else self._tombstoned.copy()
            tombstoned[rows] = True
            self._tombstoned = tombstoned

    def count(self, allowed: Mask | None) -> int:
        """Return the number of open images that are allowed and have no tombstone."""
        if self._tombstoned is not None:
            allowed = ~self._tombstoned if allowed is None else allowed & ~self._tombstoned
        return len(self._stored) if allowed is None else int(np.count_nonzero(allowed[self._stored.rows]))

    def search(
        self, queries_qd: Vectors, k: int, allowed: Mask | None = None, nprobe_or_ef: int | None = None
    ) -> Neighbours:
        """Return the k nearest allowed images of each query over all open shards, nearest first, by exact squared L2.

        Args:
            queries_qd: (q, d) embeddings.
            k: number of neighbours; fewer come back only where fewer images are allowed.
            allowed: (rows of the gallery,) mask; None allows all.
            nprobe_or_ef: nprobe (IVF) or ef_search (HNSW) of this search; None takes the default of the index.
        """
        assert allowed is None or len(allowed) == len(self)
        if self._tombstoned is not None:
            allowed = ~self._tombstoned if allowed is None else allowed & ~self._tombstoned
        mask = None if allowed is None else allowed[self._stored.rows]
        reachable = len(self._stored) if mask is None else int(mask.sum())
        filtered = reachable < len(self._stored)
        nprobe_or_ef = self.nprobe_or_ef if nprobe_or_ef is None else nprobe_or_ef
        nprobe_or_ef *= min(MAX_FILTER_FACTOR, max(1, len(self._stored) // max(1, reachable)))
        results = []
        for batch in _batches(queries_qd):
            if self.shape.kind != "flat" and filtered and reachable <= SCAN_BELOW:
                results.append(self._scan(batch, k, mask))
                continue
            near = _nearest(self._candidates(batch, k, mask if filtered else None, nprobe_or_ef), k)
            results.append(self._completed(near, batch, min(k, reachable), mask))
        near = self._with_rows(results, k)
        # FAISS's results were checked already; this check covers every path, scans included.
        assert allowed is None or allowed[near.rows_qk[near.rows_qk >= 0]].all(), (
            "a search returned an image that is not allowed"
        )
        return near

    def candidates(self, queries_qd: Vectors, k: int, nprobe_or_ef: int) -> list[Candidates]:
        """Return what FAISS finds with this nprobe or ef_search, without any scan; one result per batch of queries.

        ``positions_qc`` holds gallery rows instead of positions.
        """
        results = []
        for batch in _batches(queries_qd):
            result = self._candidates(batch, k, None, nprobe_or_ef)
            results.append(Candidates(self._rows(result.positions_qc), result.rough_qc, result.exact_qc))
        return results

    def _candidates(self, queries: Fp32Vectors, k: int, mask: Mask | None, nprobe_or_ef: int) -> Candidates:
        count = candidate_count(self.shape, k)
        if self.shape.kind == "hnsw":  # a search keeps only ef_search candidates, and keeping more takes longer
            count = min(k + HNSW_SLACK, max(k, nprobe_or_ef))
        # More than there are vectors would only be padding.
        count = max(1, min(count, len(self._stored)))
        return self._engine.candidates(queries, count, mask, nprobe_or_ef)

    def _completed(self, near: Neighbours, queries: Fp32Vectors, expected: int, mask: Mask | None) -> Neighbours:
        # An approximate search may find fewer than exist: such queries are scanned, never answered with too few.
        short = np.flatnonzero((near.rows_qk >= 0).sum(axis=1) < expected)
        if len(short):
            exact = self._scan(queries[short], near.rows_qk.shape[1], mask)
            near.rows_qk[short], near.distances_qk[short] = exact.rows_qk, exact.distances_qk
        return near

    def _scan(self, queries: Fp32Vectors, k: int, mask: Mask | None) -> Neighbours:
        """Return the positions of the k nearest allowed rows, by brute force over the exact vectors."""
        best, floats = _no_neighbours(len(queries), k), np.empty((0, self.shape.dim), dtype=np.float32)
        for positions in self._blocks(mask):
            if not len(floats):  # the first block is the largest
                floats = np.empty((len(positions), self.shape.dim), dtype=np.float32)
            block = widen(self._stored.fp16(positions), floats[: len(positions)])
            local = scan(queries, block, k)
            distances = distances_to(queries, block, local)
            best = merge([best, nearest(np.where(local >= 0, positions[local], -1), distances, k)], k)
        return best

    def _blocks(self, mask: Mask | None) -> Iterator[RowNumbers]:
        positions = np.arange(len(self._stored)) if mask is None else np.flatnonzero(mask)
        for start in range(0, len(positions), BLOCK):
            yield positions[start : start + BLOCK]

    def exact(self, queries_qd: Vectors, k: int) -> Neighbours:
        """Return the k nearest of each query by brute force over the stored vectors; recall is measured against it.

        Tombstones do not apply.
        """
        return self._with_rows([self._scan(batch, k, None) for batch in _batches(queries_qd)], k)

    def vectors(self, rows: RowNumbers) -> npt.NDArray[np.float16]:
        """Return (..., d) stored embeddings of gallery rows; zeros for -1 and for rows that are deleted or not open."""
        flat, known = rows.reshape(-1), self._stored.rows
        positions = np.searchsorted(known, flat)
        present = np.flatnonzero(positions < len(known))
        present = present[known[positions[present]] == flat[present]]
        out = np.zeros((len(flat), self.shape.dim), dtype=np.float16)
        out[present] = self._stored.fp16(positions[present])
        return out.reshape(*rows.shape, self.shape.dim)

    def _rows(self, positions: RowNumbers) -> RowNumbers:
        return positions if self._stored.in_order else np.where(positions >= 0, self._stored.rows[positions], -1)

    def _with_rows(self, results: Sequence[Neighbours], k: int) -> Neighbours:
        """Join the results of all batches, with gallery rows instead of positions."""
        batches = results or [_no_neighbours(0, k)]
        positions = np.concatenate([batch.rows_qk for batch in batches])
        return Neighbours(self._rows(positions), np.concatenate([batch.distances_qk for batch in batches]))


def candidate_count(shape: Shape, k: int) -> int:
    """Return the number of candidates whose exact distances are compared to find k neighbours."""
    return k * shape.refine + SLACK


def _nearest(candidates: Candidates, k: int) -> Neighbours:
    return nearest(candidates.positions_qc, candidates.exact_qc, k)


def _no_neighbours(count: int, k: int) -> Neighbours:
    return nearest(np.empty((count, 0), np.int64), np.empty((count, 0), np.float32), k)


def _batches(queries_qd: Vectors) -> Iterator[Fp32Vectors]:
    queries = np.ascontiguousarray(queries_qd, dtype=np.float32)
    for start in range(0, len(queries), BATCH):
        yield queries[start : start + BATCH]


def read_facts(artefact: Artefact) -> IndexFacts:
    """Read ``index.json`` of a version of kind ``indexes``.

    Raises:
        IntegrityError: the file does not match its manifest, or has another schema.
    """
    try:
        return IndexFacts.model_validate_json(artefact.read_bytes(FACTS))
    except ValueError as error:
        raise IntegrityError(
            f"indexes/{artefact.manifest.version}: {FACTS} cannot be read; rebuild the index"
        ) from error
