"""All shards of an index together: search, merge, gather (DESIGN §2, §4)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mrcg.errors import IntegrityError
from mrcg.index import kinds
from mrcg.index.gallery import Gallery
from mrcg.index.layout import FACTS, IndexFacts, Shape
from mrcg.index.metric import (
    BLOCK,
    SLACK,
    Mask,
    Neighbours,
    Rows,
    Vectors,
    exact_distances,
    merge,
    nearest,
    scan,
)
from mrcg.index.shard import Part
from mrcg.store import Artefact

#: With fewer rows allowed than this all of them are scanned: it is faster than a filtered search, and exact.
SCAN_BELOW = 20_000
#: A filtered search looks as much further as the filter is narrow, up to so many times.
WIDEN = 16
#: Queries that are searched for together.
BATCH = 256


class ShardedIndex:
    """The gallery, or some of its shards, ready to be searched. Rows are those of the corpus' table of scans.

    Args:
        shape: of the index.
        parts: of all shards, or of those that are open here.
        effort: of a search where none is given: cells (IVF) or breadth (HNSW).
    """

    def __init__(self, shape: Shape, parts: Sequence[Part], effort: int) -> None:
        self.shape = shape
        self.parts = list(parts)
        self.effort = effort
        self.gallery = Gallery([part.table for part in parts])
        self._buried: Mask | None = None

    def __len__(self) -> int:
        return len(self.gallery)

    @classmethod
    def open(cls, artefact: Artefact, shards: Collection[int] | None = None) -> ShardedIndex:
        """Load an index, or some of its shards; every file is hashed before it is used.

        Raises:
            IntegrityError: a file is not the one that was published.
        """
        facts = read_facts(artefact)
        parts = [one for one in facts.parts if shards is None or one.shard in shards]
        return cls(facts.shape, [Part.open(artefact.on_disk, facts.shape, one) for one in parts], facts.effort)

    def bury(self, image_ids: Sequence[str]) -> None:
        """Never find these images again (tombstones, DESIGN §5)."""
        rows = self.gallery.rows_of(image_ids)
        if len(rows):
            # A new array: a search that is under way keeps the one that it began with.
            buried = np.zeros(len(self), dtype=bool) if self._buried is None else self._buried.copy()
            buried[rows] = True
            self._buried = buried

    def search(self, queries_qd: Vectors, k: int, allowed: Mask | None = None, effort: int | None = None) -> Neighbours:
        """The k nearest allowed images of each query over all shards, nearest first, by exact squared L2.

        Args:
            queries_qd: (q, d) embeddings.
            k: how many; fewer come back only where fewer are allowed.
            allowed: (rows of the gallery,), None allows all.
            effort: of this search: cells (IVF) or breadth (HNSW); the index's own where none is given.
        """
        assert allowed is None or len(allowed) == len(self)
        if self._buried is not None:
            allowed = ~self._buried if allowed is None else allowed & ~self._buried
        masks = [part.allowed(allowed) for part in self.parts]
        reachable = sum(_count(part, mask) for part, mask in zip(self.parts, masks, strict=True))
        effort = self.effort if effort is None else effort
        total = sum(map(len, self.parts))
        filtered = reachable < total
        effort *= min(WIDEN, max(1, total // max(1, reachable)))
        queries = np.ascontiguousarray(queries_qd, dtype=np.float32)
        found = []
        for start in range(0, len(queries), BATCH):
            some = queries[start : start + BATCH]
            if self.shape.kind != "flat" and filtered and reachable <= SCAN_BELOW:
                found.append(self._scan(some, k, masks))
                continue
            near = self._search(some, k, masks, effort, reachable)
            found.append(self._completed(near, some, min(k, reachable), masks))
        rows = np.concatenate([one.rows_qk for one in found]) if found else np.empty((0, k), dtype=np.int64)
        distances = np.concatenate([one.distances_qk for one in found]) if found else np.empty((0, k), dtype=np.float32)
        # Part by part it was seen to already; this is the one place that all answers pass.
        assert allowed is None or allowed[rows[rows >= 0]].all(), "a search returned an image that is not allowed"
        return Neighbours(rows, distances)

    def _search(
        self, queries: npt.NDArray[np.float32], k: int, masks: Sequence[Mask | None], effort: int, reachable: int
    ) -> Neighbours:
        count = min(k * self.shape.refine + SLACK, max(reachable, 1))
        filled = [number for number, part in enumerate(self.parts) if len(part)]
        if not filled:
            return nearest(np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32), k)
        prepared = kinds.prepare(self.parts[filled[0]].index, self.shape, queries, effort)
        rows, distances, owners = [], [], []
        for number in filled:
            near, local = self.parts[number].candidates(prepared, count, masks[number], effort)
            rows.append(local)
            distances.append(np.where(local >= 0, near, np.float32(np.inf)))
            owners.append(np.full(local.shape, number, dtype=np.int32))
        local_qc, owner_qc = np.concatenate(rows, axis=1), np.concatenate(owners, axis=1)
        if len(filled) > 1:
            first = np.argsort(np.concatenate(distances, axis=1), axis=1, kind="stable")[:, :count]
            local_qc, owner_qc = np.take_along_axis(local_qc, first, 1), np.take_along_axis(owner_qc, first, 1)
        return self._exact(queries, local_qc, owner_qc, k)

    def _exact(
        self, queries: npt.NDArray[np.float32], local_qc: Rows, owner_qc: npt.NDArray[np.int32], k: int
    ) -> Neighbours:
        """Order candidates (local row -1 pads) by exact distance, ties by gallery row; keep k."""
        vectors = np.zeros((*local_qc.shape, self.shape.dim), dtype=np.float32)
        rows = np.full(local_qc.shape, -1, dtype=np.int64)
        for number in np.unique(owner_qc).tolist():
            here = (owner_qc == number) & (local_qc >= 0)
            vectors[here] = self.parts[number].vectors_nd[local_qc[here]]
            rows[here] = self.parts[number].rows[local_qc[here]]
        return nearest(rows, exact_distances(queries, vectors), k)

    def _completed(
        self, near: Neighbours, queries: npt.NDArray[np.float32], want: int, masks: Sequence[Mask | None]
    ) -> Neighbours:
        # An approximate search may find fewer than exist: never answer less without a word.
        short = np.flatnonzero((near.rows_qk >= 0).sum(axis=1) < want)
        if len(short):
            exact = self._scan(queries[short], near.rows_qk.shape[1], masks)
            near.rows_qk[short], near.distances_qk[short] = exact.rows_qk, exact.distances_qk
        return near

    def _scan(self, queries: npt.NDArray[np.float32], k: int, masks: Sequence[Mask | None]) -> Neighbours:
        """The k nearest of all that is allowed, by brute force over the exact vectors."""
        found = nearest(np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32), k)
        for part, rows in self._blocks(masks):
            block = part.vectors_nd[rows].astype(np.float32)
            local = scan(queries, block, k)
            distances = exact_distances(queries, block[np.maximum(local, 0)])
            gallery = np.where(local >= 0, part.rows[rows[np.maximum(local, 0)]], -1)
            found = merge([found, nearest(gallery, distances, k)], k)
        return found

    def _blocks(self, masks: Sequence[Mask | None]) -> Iterator[tuple[Part, Rows]]:
        for part, mask in zip(self.parts, masks, strict=True):
            rows = np.arange(len(part)) if mask is None else np.flatnonzero(mask)
            for start in range(0, len(rows), BLOCK):
                yield part, rows[start : start + BLOCK]

    @cached_property
    def _places(self) -> tuple[npt.NDArray[np.int32], Rows]:
        """Part and local row of each gallery row, -1 where it is in no shard that is open."""
        owner, local = np.full(len(self), -1, dtype=np.int32), np.full(len(self), -1, dtype=np.int64)
        for number, part in enumerate(self.parts):
            there = np.flatnonzero(part.live)
            owner[part.rows[there]], local[part.rows[there]] = number, there
        return owner, local

    def exact(self, queries_qd: Vectors, k: int) -> Neighbours:
        """The k nearest of each query by brute force over the stored vectors: what recall is measured against."""
        queries = np.ascontiguousarray(queries_qd, dtype=np.float32)
        return self._scan(queries, k, [part.allowed(None) for part in self.parts])

    def vectors(self, rows: Rows) -> npt.NDArray[np.float16]:
        """(..., d) stored embeddings of gallery rows; zeros where a row is -1 or of a shard that is not open."""
        flat, (owner, local) = rows.reshape(-1), self._places
        out = np.zeros((len(flat), self.shape.dim), dtype=np.float16)
        for number, part in enumerate(self.parts):
            here = (flat >= 0) & (owner[flat] == number)
            out[here] = part.vectors_nd[local[flat[here]]]
        return out.reshape(*rows.shape, self.shape.dim)


def _count(part: Part, mask: Mask | None) -> int:
    return len(part) if mask is None else int(mask.sum())


def read_facts(artefact: Artefact) -> IndexFacts:
    """``index.json`` of a version of kind ``indexes``.

    Raises:
        IntegrityError: it is not what was published, or of another schema.
    """
    try:
        return IndexFacts.model_validate_json(artefact.read_bytes(FACTS))
    except ValueError as error:
        raise IntegrityError(f"indexes/{artefact.manifest.version} has no readable {FACTS}: build it again") from error
