"""All shards of an index together: search, filters, tombstones (DESIGN §2, §4)."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from mrcg.errors import IntegrityError
from mrcg.index.distances import (
    BLOCK,
    SLACK,
    Mask,
    Neighbours,
    Rows,
    Vectors,
    distances_to,
    merge,
    nearest,
    scan,
    widen,
)
from mrcg.index.engines import Candidates, assemble
from mrcg.index.layout import FACTS, IndexFacts, Shape
from mrcg.index.metadata import Gallery
from mrcg.index.part import Part
from mrcg.index.vectors import StoredVectors
from mrcg.storage.store import Artefact

#: With fewer rows allowed than this all of them are scanned: it is faster than a filtered search, and exact.
SCAN_BELOW = 20_000
#: Candidates of a graph beyond k: its own distances differ from the exact ones in their last bits alone. Of more copies
#: than these that tie at the k-th place, which one is cut is up to the graph.
HNSW_SLACK = 4
#: A filtered search looks as much further as the filter is narrow, up to so many times.
WIDEN = 16
#: Queries that are searched for together.
BATCH = 256

Queries = npt.NDArray[np.float32]


class ShardedIndex:
    """The gallery, or some of its shards, ready to be searched. Rows are those of the corpus' table of scans.

    Inside it are places: the rows that are there, in rising order.

    Args:
        shape: of the index.
        parts: of all shards, or of those that are open here.
        nprobe_or_ef: of a search where none is given: cells (IVF) or breadth (HNSW).
        mapped: whether what FAISS can map stays on disk: for a few searches.
    """

    def __init__(self, shape: Shape, parts: Sequence[Part], nprobe_or_ef: int, mapped: bool = False) -> None:
        self.shape = shape
        self.nprobe_or_ef = nprobe_or_ef
        self.parts = tuple(parts)
        self._stored = StoredVectors(parts, shape.dim)
        self._engine = assemble(shape, parts, self._stored, mapped)
        self._buried: Mask | None = None

    def __len__(self) -> int:
        return len(self.gallery)

    @functools.cached_property
    def gallery(self) -> Gallery:
        """What is known of each row; made when it is first asked for: a part that is only measured needs none."""
        return Gallery([part.table for part in self.parts])

    @classmethod
    def open(cls, artefact: Artefact, shards: Collection[int] | None = None) -> ShardedIndex:
        """Load an index, or some of its shards; every file is hashed before it is used.

        Raises:
            IntegrityError: a file is not the one that was published.
        """
        facts = read_facts(artefact)
        parts = [one for one in facts.parts if shards is None or one.shard in shards]
        return cls(facts.shape, [Part.open(artefact.on_disk, facts.shape, one) for one in parts], facts.nprobe_or_ef)

    def tombstone(self, image_ids: Sequence[str]) -> None:
        """Never find these images again (tombstones, DESIGN §5)."""
        rows = self.gallery.rows_of(image_ids)
        if len(rows):
            # A new array: a search that is under way keeps the one that it began with.
            buried = np.zeros(len(self), dtype=bool) if self._buried is None else self._buried.copy()
            buried[rows] = True
            self._buried = buried

    def count(self, allowed: Mask | None) -> int:
        """Images that are here, allowed and not buried."""
        if self._buried is not None:
            allowed = ~self._buried if allowed is None else allowed & ~self._buried
        return len(self._stored) if allowed is None else int(np.count_nonzero(allowed[self._stored.rows]))

    def search(
        self, queries_qd: Vectors, k: int, allowed: Mask | None = None, nprobe_or_ef: int | None = None
    ) -> Neighbours:
        """The k nearest allowed images of each query over all shards, nearest first, by exact squared L2.

        Args:
            queries_qd: (q, d) embeddings.
            k: how many; fewer come back only where fewer are allowed.
            allowed: (rows of the gallery,), None allows all.
            nprobe_or_ef: of this search: cells (IVF) or breadth (HNSW); the index's own where none is given.
        """
        assert allowed is None or len(allowed) == len(self)
        if self._buried is not None:
            allowed = ~self._buried if allowed is None else allowed & ~self._buried
        mask = None if allowed is None else allowed[self._stored.rows]
        reachable = len(self._stored) if mask is None else int(mask.sum())
        filtered = reachable < len(self._stored)
        nprobe_or_ef = self.nprobe_or_ef if nprobe_or_ef is None else nprobe_or_ef
        nprobe_or_ef *= min(WIDEN, max(1, len(self._stored) // max(1, reachable)))
        found = []
        for some in _batches(queries_qd):
            if self.shape.kind != "flat" and filtered and reachable <= SCAN_BELOW:
                found.append(self._scan(some, k, mask))
                continue
            near = _nearest(self._candidates(some, k, mask if filtered else None, nprobe_or_ef), k)
            found.append(self._completed(near, some, min(k, reachable), mask))
        near = self._in_rows(found, k)
        # Engine by engine it was seen to already; this is the one place that all answers pass.
        assert allowed is None or allowed[near.rows_qk[near.rows_qk >= 0]].all(), (
            "a search returned an image that is not allowed"
        )
        return near

    def candidates(self, queries_qd: Vectors, k: int, nprobe_or_ef: int) -> list[Candidates]:
        """What is found by effort alone, nothing scanned and nothing completed; rows instead of places, by batch."""
        found = []
        for some in _batches(queries_qd):
            one = self._candidates(some, k, None, nprobe_or_ef)
            found.append(Candidates(self._rows(one.places_qc), one.rough_qc, one.exact_qc))
        return found

    def _candidates(self, queries: Queries, k: int, mask: Mask | None, nprobe_or_ef: int) -> Candidates:
        count = wanted(self.shape, k)
        if self.shape.kind == "hnsw":  # a search knows no more than it is wide, and takes longer the more it keeps
            count = min(k + HNSW_SLACK, max(k, nprobe_or_ef))
        # More would only be padding.
        count = max(1, min(count, len(self._stored)))
        return self._engine.candidates(queries, count, mask, nprobe_or_ef)

    def _completed(self, near: Neighbours, queries: Queries, want: int, mask: Mask | None) -> Neighbours:
        # An approximate search may find fewer than exist: never answer less without a word.
        short = np.flatnonzero((near.rows_qk >= 0).sum(axis=1) < want)
        if len(short):
            exact = self._scan(queries[short], near.rows_qk.shape[1], mask)
            near.rows_qk[short], near.distances_qk[short] = exact.rows_qk, exact.distances_qk
        return near

    def _scan(self, queries: Queries, k: int, mask: Mask | None) -> Neighbours:
        """The k nearest of all that is allowed, by brute force over the exact vectors."""
        found, floats = _nothing(len(queries), k), np.empty((0, self.shape.dim), dtype=np.float32)
        for places in self._blocks(mask):
            if not len(floats):  # the first block is the largest
                floats = np.empty((len(places), self.shape.dim), dtype=np.float32)
            block = widen(self._stored.fp16(places), floats[: len(places)])
            local = scan(queries, block, k)
            distances = distances_to(queries, block, local)
            found = merge([found, nearest(np.where(local >= 0, places[local], -1), distances, k)], k)
        return found

    def _blocks(self, mask: Mask | None) -> Iterator[Rows]:
        places = np.arange(len(self._stored)) if mask is None else np.flatnonzero(mask)
        for start in range(0, len(places), BLOCK):
            yield places[start : start + BLOCK]

    def exact(self, queries_qd: Vectors, k: int) -> Neighbours:
        """The k nearest of each query by brute force over the stored vectors: what recall is measured against."""
        return self._in_rows([self._scan(some, k, None) for some in _batches(queries_qd)], k)

    def vectors(self, rows: Rows) -> npt.NDArray[np.float16]:
        """(..., d) stored embeddings of gallery rows; zeros where a row is -1 or of a shard that is not open."""
        flat, known = rows.reshape(-1), self._stored.rows
        places = np.searchsorted(known, flat)
        here = np.flatnonzero(places < len(known))
        here = here[known[places[here]] == flat[here]]
        out = np.zeros((len(flat), self.shape.dim), dtype=np.float16)
        out[here] = self._stored.fp16(places[here])
        return out.reshape(*rows.shape, self.shape.dim)

    def _rows(self, places: Rows) -> Rows:
        return places if self._stored.in_order else np.where(places >= 0, self._stored.rows[places], -1)

    def _in_rows(self, found: Sequence[Neighbours], k: int) -> Neighbours:
        together = found or [_nothing(0, k)]
        places = np.concatenate([one.rows_qk for one in together])
        return Neighbours(self._rows(places), np.concatenate([one.distances_qk for one in together]))


def wanted(shape: Shape, k: int) -> int:
    """Candidates whose exact distances are looked at for k neighbours."""
    return k * shape.refine + SLACK


def _nearest(found: Candidates, k: int) -> Neighbours:
    return nearest(found.places_qc, found.exact_qc, k)


def _nothing(count: int, k: int) -> Neighbours:
    return nearest(np.empty((count, 0), np.int64), np.empty((count, 0), np.float32), k)


def _batches(queries_qd: Vectors) -> Iterator[Queries]:
    queries = np.ascontiguousarray(queries_qd, dtype=np.float32)
    for start in range(0, len(queries), BATCH):
        yield queries[start : start + BATCH]


def read_facts(artefact: Artefact) -> IndexFacts:
    """``index.json`` of a version of kind ``indexes``.

    Raises:
        IntegrityError: it is not what was published, or of another schema.
    """
    try:
        return IndexFacts.model_validate_json(artefact.read_bytes(FACTS))
    except ValueError as error:
        raise IntegrityError(f"indexes/{artefact.manifest.version} has no readable {FACTS}: build it again") from error
