"""FAISS in memory: the parts that are open here, searched as one where their kind can be joined.

Parts share their coarse cells, so their inverted lists are joined into one index when they are opened: a search costs
the same however many shards lie on a node, rows that are gone are not even loaded, and ties fall as in one index. Only
HNSW graphs cannot be joined: each is searched, and the answers are merged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mrcg.errors import require
from mrcg.index import faiss_backend
from mrcg.index.distances import Distances, Mask, Rows, nearest, scan, widen
from mrcg.index.faiss_backend import Faiss, Queries
from mrcg.index.layout import Shape
from mrcg.index.part import Part
from mrcg.index.vectors import StoredVectors

#: Vectors that are copied at once.
FLAT_BLOCK = 8192


@dataclass(frozen=True)
class Candidates:
    """(q, c) places (-1 pads), distances as the index knows them, and exact ones."""

    places_qc: Rows
    rough_qc: Distances
    exact_qc: Distances


class Engine(Protocol):
    """Finds candidates."""

    def candidates(self, queries_qd: Queries, count: int, allowed: Mask | None, nprobe_or_ef: int) -> Candidates:
        """At most ``count`` for each query, none twice; ``allowed`` is over places."""
        ...


def assemble(shape: Shape, parts: Sequence[Part], stored: StoredVectors, mapped: bool = False) -> Engine:
    """What searches the parts; ``mapped``: inverted lists of a single part stay on disk."""
    if not len(stored):
        return _Graphs(shape, [])
    if shape.kind == "hnsw":
        return _Graphs(shape, [(part.load(False), stored.places_of(n)) for n, part in enumerate(parts) if part.load])
    return _Joined(shape, _flat(stored) if shape.kind == "flat" else _joined(shape, parts, stored, mapped), stored)


class _Joined:
    def __init__(self, shape: Shape, index: Faiss, stored: StoredVectors) -> None:
        self._shape, self._index, self._stored = shape, index, stored

    def candidates(self, queries_qd: Queries, count: int, allowed: Mask | None, nprobe_or_ef: int) -> Candidates:
        if self._shape.kind == "flat" and allowed is None:
            places = scan(queries_qd, faiss_backend.vectors_of(self._index), count)
            near = nearest(places, faiss_backend.own_distances(self._index, queries_qd, places), count)
            return Candidates(near.rows_qk, near.distances_qk, near.distances_qk)
        rough, places = faiss_backend.candidates(self._index, self._shape, queries_qd, count, allowed, nprobe_or_ef)
        match self._shape.kind:
            case "ivf_flat":
                # Its lists are scanned by the very routine of exact distances (a test says so).
                exact = rough
            case "flat":
                exact = faiss_backend.own_distances(self._index, queries_qd, places)
            case _:
                exact = self._stored.distances(queries_qd, places)
        return Candidates(places, rough, exact)


class _Graphs:
    def __init__(self, shape: Shape, graphs: Sequence[tuple[Faiss, Rows]]) -> None:
        self._shape = shape
        self._graphs = [(index, places, (places >= 0), _in_order(places)) for index, places in graphs if len(places)]

    def candidates(self, queries_qd: Queries, count: int, allowed: Mask | None, nprobe_or_ef: int) -> Candidates:
        found = [
            self._of_graph(number, queries_qd, count, allowed, nprobe_or_ef) for number in range(len(self._graphs))
        ]
        if len(found) == 1:
            return found[0]
        places, distances = np.empty((len(queries_qd), 0), np.int64), np.empty((len(queries_qd), 0), np.float32)
        return Candidates(
            np.concatenate([places, *(one.places_qc for one in found)], axis=1),
            np.concatenate([distances, *(one.rough_qc for one in found)], axis=1),
            np.concatenate([distances, *(one.exact_qc for one in found)], axis=1),
        )

    def _of_graph(
        self, number: int, queries_qd: Queries, count: int, allowed: Mask | None, nprobe_or_ef: int
    ) -> Candidates:
        index, places, live, in_order = self._graphs[number]
        mask = None if allowed is None and live.all() else live if allowed is None else live & allowed[places]
        rough, local = faiss_backend.candidates(index, self._shape, queries_qd, count, mask, nprobe_or_ef)
        exact = faiss_backend.own_distances(index.storage, queries_qd, local)
        return Candidates(local if in_order else np.where(local >= 0, places[local], -1), rough, exact)


def _flat(stored: StoredVectors) -> Faiss:
    # Filled in place: what is added piece by piece takes up to twice the memory.
    count, dim, index = len(stored), stored.dim, require("faiss").IndexFlatL2(stored.dim)
    index.codes.resize(4 * count * dim)
    index.ntotal = count
    vectors = faiss_backend.vectors_of(index)
    for start in range(0, count, FLAT_BLOCK):
        widen(stored.fp16(np.arange(start, min(count, start + FLAT_BLOCK))), vectors[start : start + FLAT_BLOCK])
    return index


def _joined(shape: Shape, parts: Sequence[Part], stored: StoredVectors, mapped: bool) -> Faiss:
    places = [stored.places_of(number) for number in range(len(parts))]
    if len(parts) == 1 and _in_order(places[0]):
        assert parts[0].load is not None
        return faiss_backend.make_searchable(parts[0].load(mapped), shape)
    faiss = require("faiss")
    held = [_ids(part, shape.lists) for part in parts]
    width, lists = held[0][1], faiss.ArrayInvertedLists(shape.lists, held[0][1])
    ranks: list[list[Rows]] = []
    for number in range(shape.lists):
        found = [here[ids[number]] for (ids, _), here in zip(held, places, strict=True)]
        # In the order of places, as if one index had been filled with all of them.
        together = np.sort(np.concatenate([mine[mine >= 0] for mine in found]))
        ranks.append([np.where(mine >= 0, np.searchsorted(together, mine), -1) for mine in found])
        if len(together):
            lists.resize(number, len(together))
            faiss.rev_swig_ptr(lists.get_ids(number), len(together))[:] = together
    index = None
    for place, part in enumerate(parts):
        index = _copy_codes(part, lists, [one[place] for one in ranks], width)
    assert index is not None
    faiss.extract_index_ivf(index).replace_invlists(lists, True)
    lists.this.disown()
    index.ntotal = faiss.extract_index_ivf(index).ntotal = len(stored)
    return faiss_backend.make_searchable(index, shape)


def _in_order(places: Rows) -> bool:
    """Whether a part's rows are the places themselves: nothing has to be looked up then."""
    return bool((places == np.arange(len(places))).all())


def _ids(part: Part, count: int) -> tuple[list[Rows], int]:
    """Ids in each inverted list of a part, and bytes of a code. One part is open at a time: each has its own cells."""
    assert part.load is not None
    faiss, index = require("faiss"), part.load(True)
    lists = faiss.extract_index_ivf(index).invlists
    return [_view(lists.get_ids, number, lists.list_size(number)).copy() for number in range(count)], lists.code_size


def _copy_codes(part: Part, target: Faiss, ranks: Sequence[Rows], width: int) -> Faiss:
    """Copy the codes of a part to their ranks in the joined lists; the part's index."""
    assert part.load is not None
    faiss, index = require("faiss"), part.load(True)
    source = faiss.extract_index_ivf(index).invlists
    for number, rank in enumerate(ranks):
        if (live := rank >= 0).any():
            codes = _view(source.get_codes, number, len(rank) * width).reshape(-1, width)
            into = _view(target.get_codes, number, target.list_size(number) * width).reshape(-1, width)
            into[rank[live]] = codes[live]
    return index


def _view(get: Callable[[int], Any], number: int, size: int) -> npt.NDArray[Any]:
    """Memory of an inverted list, as long as it lives."""
    array: npt.NDArray[Any] = require("faiss").rev_swig_ptr(get(number), size) if size else np.empty(0, np.int64)
    return array
