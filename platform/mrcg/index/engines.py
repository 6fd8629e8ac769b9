"""FAISS in memory: the parts that are open here, searched as one where their kind can be joined.

Parts share their coarse cells, so their inverted lists are joined into one index when they are opened: a search costs
the same however many shards lie on a node, rows that are gone are not even loaded, and ties fall as in one index. Only
HNSW graphs cannot be joined: each is searched, and the answers are merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mrcg.errors import require
from mrcg.index import kinds
from mrcg.index.kinds import Faiss, Queries
from mrcg.index.layout import Shape
from mrcg.index.metric import BLOCK, Distances, Mask, Rows, exact_distances
from mrcg.index.shard import Part, Stored


@dataclass(frozen=True)
class Candidates:
    """(q, c) places (-1 pads), distances as the index knows them, and exact ones."""

    places_qc: Rows
    rough_qc: Distances
    exact_qc: Distances


class Engine(Protocol):
    """Finds candidates."""

    def candidates(self, queries_qd: Queries, count: int, allowed: Mask | None, effort: int) -> Candidates:
        """At most ``count`` for each query, none twice; ``allowed`` is over places."""
        ...


def assemble(shape: Shape, parts: Sequence[Part], stored: Stored) -> Engine:
    """What searches the parts."""
    if shape.kind == "hnsw" or not len(stored):
        return _Graphs(shape, [(part.load(False), stored.places_of(n)) for n, part in enumerate(parts) if part.load])
    return _Joined(shape, _flat(stored) if shape.kind == "flat" else _joined(shape, parts, stored), stored)


class _Joined:
    def __init__(self, shape: Shape, index: Faiss, stored: Stored) -> None:
        self._shape, self._index, self._stored = shape, index, stored

    def candidates(self, queries_qd: Queries, count: int, allowed: Mask | None, effort: int) -> Candidates:
        rough, places = kinds.candidates(self._index, self._shape, queries_qd, count, allowed, effort)
        match self._shape.kind:
            case "ivf_flat":
                # Its lists are scanned by the very routine of exact distances (a test says so).
                exact = rough
            case "flat":
                exact = kinds.own_distances(self._index, queries_qd, places)
            case _:
                vectors = self._stored.floats(np.maximum(places, 0).reshape(-1))
                exact = exact_distances(queries_qd, vectors.reshape(*places.shape, self._shape.dim))
        return Candidates(places, rough, exact)


class _Graphs:
    def __init__(self, shape: Shape, graphs: Sequence[tuple[Faiss, Rows]]) -> None:
        self._shape = shape
        self._graphs = [(index, places, (places >= 0)) for index, places in graphs if len(places)]

    def candidates(self, queries_qd: Queries, count: int, allowed: Mask | None, effort: int) -> Candidates:
        found = [self._of_graph(number, queries_qd, count, allowed, effort) for number in range(len(self._graphs))]
        if len(found) == 1:
            return found[0]
        places, distances = np.empty((len(queries_qd), 0), np.int64), np.empty((len(queries_qd), 0), np.float32)
        return Candidates(
            np.concatenate([places, *(one.places_qc for one in found)], axis=1),
            np.concatenate([distances, *(one.rough_qc for one in found)], axis=1),
            np.concatenate([distances, *(one.exact_qc for one in found)], axis=1),
        )

    def _of_graph(self, number: int, queries_qd: Queries, count: int, allowed: Mask | None, effort: int) -> Candidates:
        index, places, live = self._graphs[number]
        mask = None if allowed is None and live.all() else live if allowed is None else live & allowed[places]
        rough, local = kinds.candidates(index, self._shape, queries_qd, count, mask, effort)
        exact = kinds.own_distances(index.storage, queries_qd, local)
        return Candidates(np.where(local >= 0, places[local], -1), rough, exact)


def _flat(stored: Stored) -> Faiss:
    index = require("faiss").IndexFlatL2(stored.dim)
    for start in range(0, len(stored), BLOCK):
        index.add(stored.halves(np.arange(start, min(len(stored), start + BLOCK))).astype(np.float32))
    return index


def _joined(shape: Shape, parts: Sequence[Part], stored: Stored) -> Faiss:
    places = [stored.places_of(number) for number in range(len(parts))]
    if len(parts) == 1 and (places[0] == np.arange(len(parts[0]))).all():
        assert parts[0].load is not None
        return parts[0].load(False)
    faiss = require("faiss")
    opened = [part.load(True) for part in parts if part.load is not None]
    assert len(opened) == len(parts)
    sources = [faiss.extract_index_ivf(index).invlists for index in opened]
    width = int(sources[0].code_size)
    lists = faiss.ArrayInvertedLists(shape.lists, width)
    for number in range(shape.lists):
        found, codes = [], []
        for source, here in zip(sources, places, strict=True):
            if size := source.list_size(number):
                mine = here[faiss.rev_swig_ptr(source.get_ids(number), size)]
                found.append(mine[mine >= 0])
                codes.append(faiss.rev_swig_ptr(source.get_codes(number), size * width).reshape(size, width)[mine >= 0])
        _fill(lists, number, found, codes)
    index = opened[0]
    faiss.extract_index_ivf(index).replace_invlists(lists, True)
    lists.this.disown()
    index.ntotal = faiss.extract_index_ivf(index).ntotal = len(stored)
    return index


def _fill(lists: Faiss, number: int, found: Sequence[Rows], codes: Sequence[npt.NDArray[np.uint8]]) -> None:
    """One inverted list, in the order of places: as if one index had been filled with all of them."""
    places = np.concatenate([np.empty(0, np.int64), *found])
    if not len(places):
        return
    faiss, order = require("faiss"), np.argsort(places, kind="stable")
    # Variables of their own: a pointer does not keep an array alive.
    ids, together = places[order], np.ascontiguousarray(np.concatenate(codes)[order])
    lists.resize(number, len(ids))
    lists.update_entries(number, 0, len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(together))
