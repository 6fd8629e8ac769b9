"""What FAISS is asked for: how each kind is made, trained, filled, searched, written and read.

Nothing on a shared index is changed while it is searched: ``nprobe`` and ``efSearch`` go with each call.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mrcg.errors import require
from mrcg.index.layout import Shape
from mrcg.index.metric import Mask, Rows

log = logging.getLogger(__name__)

Queries = npt.NDArray[np.float32]
#: A FAISS index; its classes carry no types.
Faiss = Any

#: Vectors for each coarse cell that training looks at; FAISS wants 39 at least.
TRAIN_PER_LIST = 64
HNSW_BUILD_EFFORT = 80
#: Rotations of OPQ: eight rounds on so many vectors are within 1 % of FAISS's fifty on 65,536, in a tenth of the time.
OPQ_ROUNDS, OPQ_VECTORS = 8, 16_384


class _Sink(Protocol):
    def write(self, data: Any) -> int: ...


def use_threads(wanted: int) -> None:
    """Let FAISS compute with so many threads; 0: as many as this process was given (OMP_NUM_THREADS), or all cores."""
    given = wanted or int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    require("faiss").omp_set_num_threads(given)


def factory(shape: Shape) -> str:
    """The index in FAISS's own words."""
    match shape.kind:
        case "flat":
            return "Flat"
        case "hnsw":
            return f"HNSW{shape.links},Flat"
        case "ivf_flat":
            return f"IVF{shape.lists},Flat"
        case "ivf_sq":
            return f"IVF{shape.lists},SQ8"
        case "opq_ivf_pq":
            out = min(shape.dim // shape.pq_bytes, 4) * shape.pq_bytes
            return f"OPQ{shape.pq_bytes}_{out},IVF{shape.lists},PQ{shape.pq_bytes}"


def new_index(shape: Shape, seed: int) -> Faiss:
    """An empty index, untrained."""
    faiss = require("faiss")
    index = faiss.index_factory(shape.dim, factory(shape))
    if shape.kind == "hnsw":
        index.hnsw.efConstruction = HNSW_BUILD_EFFORT
    if shape.trained:
        ivf = faiss.extract_index_ivf(index)
        ivf.cp.seed = seed % 2**31
        ivf.cp.max_points_per_centroid = TRAIN_PER_LIST
        if shape.kind == "opq_ivf_pq":
            rotation = faiss.downcast_VectorTransform(index.chain.at(0))
            rotation.niter, rotation.max_train_points = OPQ_ROUNDS, OPQ_VECTORS
    return index


def train(shape: Shape, sample_nd: npt.NDArray[np.float32], seed: int, gpu: bool = False) -> Faiss:
    """An empty index that has learned its cells (and codes) from a sample; on a GPU the cells are assigned there."""
    faiss, index = require("faiss"), new_index(shape, seed)
    # FAISS does not own a clustering index: it must outlive the training, and go before the index is used.
    ivf, assigner = faiss.extract_index_ivf(index), _assigner(index) if gpu else None
    ivf.clustering_index = assigner
    index.train(np.ascontiguousarray(sample_nd))
    ivf.clustering_index = None
    return index


def _assigner(index: Faiss) -> Faiss:
    """What finds the nearest cell of a vector during training: on the GPUs of this process, None where it has none."""
    faiss = require("faiss")
    # The wheels of some systems know no GPU at all.
    count = faiss.get_num_gpus() if hasattr(faiss, "index_cpu_to_all_gpus") else 0
    log.info("cells are learned on %s", f"{count} GPUs" if count else "the CPU: FAISS sees no GPU")
    return faiss.index_cpu_to_all_gpus(faiss.IndexFlatL2(faiss.extract_index_ivf(index).d)) if count else None


def write_index(index: Faiss, sink: _Sink) -> None:
    """Write an index piece by piece."""
    faiss = require("faiss")
    writer = faiss.BufferedIOWriter(faiss.PyCallbackIOWriter(sink.write), 2**20)
    faiss.write_index(index, writer)


def read_index(path: Path) -> Faiss:
    """An index from a file whose bytes were checked."""
    return require("faiss").read_index(str(path))


def flat_index(dim: int) -> Faiss:
    """An empty exact index."""
    return require("faiss").IndexFlatL2(dim)


@dataclass(frozen=True)
class Prepared:
    """Queries as the parts want them: turned by the rotation, and with the coarse cells that are searched.

    All parts share one coarse quantiser, so cells are found once, however many parts there are.
    """

    queries_qd: Queries
    cells: Rows | None = None
    cell_distances: npt.NDArray[np.float32] | None = None


def prepare(index: Faiss, shape: Shape, queries_qd: Queries, effort: int) -> Prepared:
    """Queries ready for ``candidates`` of every part; ``index`` is any one of them."""
    if not shape.trained:
        return Prepared(queries_qd)
    faiss = require("faiss")
    if shape.kind == "opq_ivf_pq":
        queries_qd = index.chain.at(0).apply(queries_qd)
    distances, cells = faiss.extract_index_ivf(index).quantizer.search(queries_qd, min(effort, shape.lists))
    return Prepared(queries_qd, cells, distances)


def is_a_cell(trained: Faiss, shape: Shape, vectors_nd: Queries) -> npt.NDArray[np.bool_]:
    """(n,) which vectors are themselves the centre of a coarse cell."""
    if not len(vectors_nd):
        return np.zeros(0, dtype=bool)
    prepared = prepare(trained, shape, vectors_nd, 1)
    assert prepared.cell_distances is not None
    # What rounding leaves of a distance of 0 is in proportion to the vectors' lengths.
    length = np.einsum("nd,nd->n", prepared.queries_qd, prepared.queries_qd)
    near: npt.NDArray[np.bool_] = prepared.cell_distances[:, 0] <= 1e-5 * np.maximum(length, 1e-30)
    return near


def candidates(
    index: Faiss, shape: Shape, prepared: Prepared, count: int, allowed: Mask | None, effort: int
) -> tuple[npt.NDArray[np.float32], Rows]:
    """(q, count) distances as this kind knows them, and rows of the part, -1 where it found fewer."""
    faiss = require("faiss")
    selector = None
    if allowed is not None:
        selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    queries = prepared.queries_qd
    if prepared.cells is not None:
        return _preassigned(faiss.extract_index_ivf(index), prepared, count, selector)
    if shape.kind == "hnsw":
        parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=max(effort, count))
    else:
        parameters = None if selector is None else faiss.SearchParameters(sel=selector)
    found: tuple[npt.NDArray[np.float32], Rows] = index.search(queries, count, params=parameters)
    return found


def _preassigned(ivf: Faiss, prepared: Prepared, count: int, selector: Any) -> tuple[npt.NDArray[np.float32], Rows]:
    # FAISS's own Python wrapper of this takes no parameters, and asks for the index's nprobe.
    faiss, queries = require("faiss"), np.ascontiguousarray(prepared.queries_qd)
    assert prepared.cells is not None
    parameters = faiss.SearchParametersIVF(sel=selector, nprobe=prepared.cells.shape[1])
    distances = np.empty((len(queries), count), dtype=np.float32)
    rows = np.empty((len(queries), count), dtype=np.int64)
    ivf.search_preassigned_c(
        len(queries),
        *(faiss.swig_ptr(queries), count, faiss.swig_ptr(prepared.cells), faiss.swig_ptr(prepared.cell_distances)),
        *(faiss.swig_ptr(distances), faiss.swig_ptr(rows), False, parameters),
    )
    return distances, rows
