"""Candidate search over the open parts of an index; parts are joined into one FAISS index where their kind allows it.

All parts share their coarse cells, so opening them joins their inverted lists into one index. A search then costs the
same however many shards a node holds, deleted rows are not loaded, and ties are broken as in a single index. HNSW
graphs cannot be joined: each is searched on its own, and the results are merged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mrcg.arrays import Distances, Fp32Vectors, Mask, RowNumbers
from mrcg.errors import require
from mrcg.index import faiss_backend
from mrcg.index.distances import nearest, scan, widen
from mrcg.index.faiss_backend import Faiss
from mrcg.index.layout import Shape
from mrcg.index.part import Part
from mrcg.index.vectors import StoredVectors

#: Vectors copied at a time.
FLAT_BLOCK = 8192


@dataclass(frozen=True)
class Candidates:
    """Candidates of each query.

    Attributes:
        positions_qc: (q, c) positions in ``StoredVectors``, -1 is padding.
        rough_qc: (q, c) distances as the index itself computes them; approximate for the compressed kinds.
        exact_qc: (q, c) exact squared L2.
    """

    positions_qc: RowNumbers
    rough_qc: Distances
    exact_qc: Distances


class Engine(Protocol):
    """Finds the candidates of queries."""

    def candidates(self, queries_qd: Fp32Vectors, count: int, allowed: Mask | None, nprobe_or_ef: int) -> Candidates:
        """Return up to ``count`` candidates of each query, each at most once; ``allowed`` is a mask over positions."""
        ...


def assemble(shape: Shape, parts: Sequence[Part], stored: StoredVectors, mapped: bool = False) -> Engine:
    """Return the engine that searches the parts; ``mapped`` keeps the inverted lists of a single part on disk."""
    if not len(stored):
        return _GraphEngine(shape, [])
    if shape.kind == "hnsw":
        graphs = [(part.load(False), stored.positions_of(n)) for n, part in enumerate(parts) if part.load]
        return _GraphEngine(shape, graphs)
    index = _flat_index(stored) if shape.kind == "flat" else _joined_index(shape, parts, stored, mapped)
    return _JoinedEngine(shape, index, stored)


class _JoinedEngine:
    """Searches all parts as one flat or IVF index, whose ids are positions."""

    def __init__(self, shape: Shape, index: Faiss, stored: StoredVectors) -> None:
        self._shape, self._index, self._stored = shape, index, stored

    def candidates(self, queries_qd: Fp32Vectors, count: int, allowed: Mask | None, nprobe_or_ef: int) -> Candidates:
        if self._shape.kind == "flat" and allowed is None:
            positions = scan(queries_qd, faiss_backend.flat_vectors(self._index), count)
            near = nearest(positions, faiss_backend.flat_distances(self._index, queries_qd, positions), count)
            return Candidates(near.rows_qk, near.distances_qk, near.distances_qk)
        rough, positions = faiss_backend.candidates(self._index, self._shape, queries_qd, count, allowed, nprobe_or_ef)
        match self._shape.kind:
            case "ivf_flat":
                # FAISS scans these lists with the routine of distances_to (a test checks that).
                exact = rough
            case "flat":
                exact = faiss_backend.flat_distances(self._index, queries_qd, positions)
            case _:
                exact = self._stored.distances(queries_qd, positions)
        return Candidates(positions, rough, exact)


class _GraphEngine:
    """Searches the HNSW graph of each part and puts the candidates of all graphs side by side."""

    def __init__(self, shape: Shape, graphs: Sequence[tuple[Faiss, RowNumbers]]) -> None:
        self._shape = shape
        self._graphs = [
            (index, positions, (positions >= 0), _in_order(positions)) for index, positions in graphs if len(positions)
        ]

    def candidates(self, queries_qd: Fp32Vectors, count: int, allowed: Mask | None, nprobe_or_ef: int) -> Candidates:
        results = [
            self._of_graph(number, queries_qd, count, allowed, nprobe_or_ef) for number in range(len(self._graphs))
        ]
        if len(results) == 1:
            return results[0]
        no_positions, no_distances = (
            np.empty((len(queries_qd), 0), np.int64),
            np.empty((len(queries_qd), 0), np.float32),
        )
        return Candidates(
            np.concatenate([no_positions, *(result.positions_qc for result in results)], axis=1),
            np.concatenate([no_distances, *(result.rough_qc for result in results)], axis=1),
            np.concatenate([no_distances, *(result.exact_qc for result in results)], axis=1),
        )

    def _of_graph(
        self, number: int, queries_qd: Fp32Vectors, count: int, allowed: Mask | None, nprobe_or_ef: int
    ) -> Candidates:
        index, positions, live, in_order = self._graphs[number]
        mask = None if allowed is None and live.all() else live if allowed is None else live & allowed[positions]
        rough, local = faiss_backend.candidates(index, self._shape, queries_qd, count, mask, nprobe_or_ef)
        exact = faiss_backend.flat_distances(index.storage, queries_qd, local)
        return Candidates(local if in_order else np.where(local >= 0, positions[local], -1), rough, exact)


def _flat_index(stored: StoredVectors) -> Faiss:
    # Filled in place: adding vectors block by block would take up to twice the memory.
    count, dim, index = len(stored), stored.dim, require("faiss").IndexFlatL2(stored.dim)
    index.codes.resize(4 * count * dim)
    index.ntotal = count
    vectors = faiss_backend.flat_vectors(index)
    for start in range(0, count, FLAT_BLOCK):
        widen(stored.fp16(np.arange(start, min(count, start + FLAT_BLOCK))), vectors[start : start + FLAT_BLOCK])
    return index


def _joined_index(shape: Shape, parts: Sequence[Part], stored: StoredVectors, mapped: bool) -> Faiss:
    positions = [stored.positions_of(number) for number in range(len(parts))]
    if len(parts) == 1 and _in_order(positions[0]):
        assert parts[0].load is not None
        return faiss_backend.make_searchable(parts[0].load(mapped), shape)
    faiss = require("faiss")
    part_lists = [_list_ids(part, shape.lists) for part in parts]
    width, lists = part_lists[0][1], faiss.ArrayInvertedLists(shape.lists, part_lists[0][1])
    # For each list and part, the rank of each of the part's entries in the joined list, -1 for a deleted row.
    ranks: list[list[RowNumbers]] = []
    for number in range(shape.lists):
        entries = [by_id[ids[number]] for (ids, _), by_id in zip(part_lists, positions, strict=True)]
        # Sorted by position, as if one index had been filled with all rows.
        joined = np.sort(np.concatenate([entry[entry >= 0] for entry in entries]))
        ranks.append([np.where(entry >= 0, np.searchsorted(joined, entry), -1) for entry in entries])
        if len(joined):
            lists.resize(number, len(joined))
            faiss.rev_swig_ptr(lists.get_ids(number), len(joined))[:] = joined
    index = None
    for number, part in enumerate(parts):
        index = _copy_codes(part, lists, [list_ranks[number] for list_ranks in ranks], width)
    assert index is not None
    faiss.extract_index_ivf(index).replace_invlists(lists, True)
    lists.this.disown()
    index.ntotal = faiss.extract_index_ivf(index).ntotal = len(stored)
    return faiss_backend.make_searchable(index, shape)


def _in_order(positions: RowNumbers) -> bool:
    """Return whether a part's rows are at positions 0, 1, 2, …, so that no look-up is needed."""
    return bool((positions == np.arange(len(positions))).all())


def _list_ids(part: Part, count: int) -> tuple[list[RowNumbers], int]:
    """Return the ids in each inverted list of a part, and the bytes of a code.

    The part's index is closed again on return: each has its own copy of the cells, so only one is open at a time.
    """
    assert part.load is not None
    faiss, index = require("faiss"), part.load(True)
    lists = faiss.extract_index_ivf(index).invlists
    return [_view(lists.get_ids, number, lists.list_size(number)).copy() for number in range(count)], lists.code_size


def _copy_codes(part: Part, target: Faiss, ranks: Sequence[RowNumbers], width: int) -> Faiss:
    """Copy the codes of a part to their ranks in the joined lists; return the part's index."""
    assert part.load is not None
    faiss, index = require("faiss"), part.load(True)
    source = faiss.extract_index_ivf(index).invlists
    for number, rank in enumerate(ranks):
        if (live := rank >= 0).any():
            codes = _view(source.get_codes, number, len(rank) * width).reshape(-1, width)
            joined = _view(target.get_codes, number, target.list_size(number) * width).reshape(-1, width)
            joined[rank[live]] = codes[live]
    return index


def _view(get: Callable[[int], Any], number: int, size: int) -> npt.NDArray[Any]:
    """Return the memory of an inverted list as an array, valid only as long as the list."""
    array: npt.NDArray[Any] = require("faiss").rev_swig_ptr(get(number), size) if size else np.empty(0, np.int64)
    return array
