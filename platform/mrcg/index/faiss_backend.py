"""What FAISS is asked for: how each kind is made, trained, filled, searched, written and read.

Nothing on a shared index is changed while it is searched: ``nprobe`` and ``efSearch`` go with each call.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mrcg.errors import require
from mrcg.index.distances import MANY, Distances, Mask, Rows, by_products
from mrcg.index.layout import Shape

log = logging.getLogger(__name__)

Queries = npt.NDArray[np.float32]
#: A FAISS index; its classes carry no types.
Faiss = Any

#: Vectors for each coarse cell that training looks at; FAISS wants 39 at least.
TRAIN_PER_LIST = 64
HNSW_EF_CONSTRUCTION = 80
#: FAISS's number for it; otherwise only ``search`` shares, and not who was told the cells.
_OVER_QUERIES = 3
#: Dimensions that FAISS's SuperKMeans wants at least.
SUPER_KMEANS_DIM = 32
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
            return f"OPQ{shape.pq_bytes}_{shape.inner_dim},IVF{shape.lists},PQ{shape.pq_bytes}"


def new_index(shape: Shape, seed: int) -> Faiss:
    """An empty index, untrained."""
    faiss = require("faiss")
    index = faiss.index_factory(shape.dim, factory(shape))
    if shape.kind == "hnsw":
        index.hnsw.efConstruction = HNSW_EF_CONSTRUCTION
    if shape.trained:
        ivf = faiss.extract_index_ivf(index)
        ivf.cp.seed = seed % 2**31
        ivf.cp.max_points_per_centroid = TRAIN_PER_LIST
        if shape.kind == "opq_ivf_pq":
            rotation = faiss.downcast_VectorTransform(index.chain.at(0))
            rotation.niter, rotation.max_train_points = OPQ_ROUNDS, OPQ_VECTORS
            # It sorts codes for a filter that nobody uses here, and takes longer than all the rest.
            faiss.downcast_index(ivf).do_polysemous_training = False
    return index


def train(shape: Shape, sample_nd: npt.NDArray[np.float32], seed: int, gpu: bool = False) -> Faiss:
    """An empty index that has learned its cells (and codes) from a sample; on a GPU the cells are assigned there."""
    faiss, index = require("faiss"), new_index(shape, seed)
    # FAISS does not own a clustering index: it must outlive the training, and go before the index is used.
    ivf, assigner = faiss.extract_index_ivf(index), _assigner(index) if gpu else None
    ivf.clustering_index = assigner
    # Most cells are ruled out by a part of the dimensions: as good, in less time the more there are and the wider.
    ivf.cp.use_super_kmeans = assigner is None and shape.inner_dim >= SUPER_KMEANS_DIM
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
    failed: list[Exception] = []

    def write(data: bytes) -> int:
        try:
            return len(data) if failed else sink.write(data)
        except Exception as error:
            # FAISS writes its last buffer when the writer goes: what is raised then would be lost.
            failed.append(error)
            return len(data)

    writer = faiss.BufferedIOWriter(faiss.PyCallbackIOWriter(write), 2**20)
    faiss.write_index(index, writer)
    del writer
    if failed:
        raise failed[0]


def read_index(path: Path, mapped: bool = False) -> Faiss:
    """An index from a file whose bytes were checked, to be filled or copied from: ``make_searchable`` does the rest.

    ``mapped``: its inverted lists stay on disk.
    """
    faiss = require("faiss")
    flags = faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE | (faiss.IO_FLAG_MMAP if mapped else 0)
    return faiss.read_index(str(path), flags)


def make_searchable(index: Faiss, shape: Shape) -> Faiss:
    """The same index with what makes its search fast: tables, which need memory, and threads that share queries."""
    if not shape.trained:
        return index
    ivf = require("faiss").extract_index_ivf(index)
    ivf.parallel_mode = _OVER_QUERIES
    if shape.kind == "opq_ivf_pq":
        require("faiss").downcast_index(ivf).precompute_table()
    return index


def is_a_cell(trained: Faiss, shape: Shape, vectors_nd: Queries) -> npt.NDArray[np.bool_]:
    """(n,) which vectors are themselves the centre of a coarse cell."""
    if not len(vectors_nd):
        return np.zeros(0, dtype=bool)
    if shape.kind == "opq_ivf_pq":
        vectors_nd = trained.chain.at(0).apply(vectors_nd)
    distances = require("faiss").extract_index_ivf(trained).quantizer.search(vectors_nd, 1)[0][:, 0]
    # What rounding leaves of a distance of 0 is in proportion to the vectors' lengths.
    near: npt.NDArray[np.bool_] = distances <= 1e-5 * np.maximum(np.einsum("nd,nd->n", vectors_nd, vectors_nd), 1e-30)
    return near


def candidates(
    index: Faiss, shape: Shape, queries_qd: Queries, count: int, allowed: Mask | None, nprobe_or_ef: int
) -> tuple[Distances, Rows]:
    """(q, count) distances as this kind knows them, and ids, -1 where it found fewer.

    Args:
        index: filled.
        shape: of it.
        queries_qd: (q, d).
        count: of each query.
        allowed: over ids; None allows all.
        nprobe_or_ef: cells (IVF) or breadth (HNSW).
    """
    faiss, selector = require("faiss"), None
    if allowed is not None:
        selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    if shape.trained:
        distances, ids = _in_cells(index, shape, queries_qd, count, min(nprobe_or_ef, shape.lists), selector)
    elif shape.kind == "hnsw":
        parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=max(nprobe_or_ef, count))
        distances, ids = index.search(queries_qd, count, params=parameters)
    else:
        parameters = None if selector is None else faiss.SearchParameters(sel=selector)
        distances, ids = index.search(queries_qd, count, params=parameters)
    assert allowed is None or allowed[ids[ids >= 0]].all(), "a search returned a row that is not allowed"
    return distances, ids


def _in_cells(
    index: Faiss, shape: Shape, queries_qd: Queries, count: int, probes: int, selector: Faiss
) -> tuple[Distances, Rows]:
    faiss = require("faiss")
    if shape.kind == "opq_ivf_pq":
        queries_qd = index.chain.at(0).apply(queries_qd)
    ivf = faiss.extract_index_ivf(index)
    parameters = faiss.SearchParametersIVF(sel=selector, nprobe=probes)
    if len(queries_qd) < MANY:
        distances, ids = ivf.search(queries_qd, count, params=parameters)
        return distances, ids
    cells = by_products(queries_qd, centres(ivf), probes)[1]
    # Codes of residuals count on them: to the last bit those of a search alone.
    rough = own_distances(ivf.quantizer, queries_qd, cells)
    distances, ids = np.empty((len(queries_qd), count), np.float32), np.empty((len(queries_qd), count), np.int64)
    asked, near, away, into, found = (faiss.swig_ptr(one) for one in (queries_qd, cells, rough, distances, ids))
    ivf.search_preassigned_c(len(queries_qd), asked, count, near, away, into, found, False, parameters)
    return distances, ids


def centres(ivf: Faiss) -> Queries:
    """(lists, d) centres of the coarse cells, as long as the index lives."""
    return vectors_of(require("faiss").downcast_index(ivf.quantizer))


def vectors_of(flat: Faiss) -> Queries:
    """(n, d) what a flat index holds, as long as it lives."""
    vectors: Queries = require("faiss").rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)
    return vectors


def own_distances(flat: Faiss, queries_qd: Queries, ids_qc: Rows) -> Distances:
    """(q, c) exact squared L2 to vectors of a flat index, by the routine of ``metric.exact_distances``; -1 is inf."""
    pointer = require("faiss").swig_ptr
    queries, ids = np.ascontiguousarray(queries_qd), np.ascontiguousarray(ids_qc)
    out = np.full(ids.shape, np.inf, dtype=np.float32)
    if ids.size:
        flat = require("faiss").downcast_index(flat)
        flat.compute_distance_subset(len(ids), pointer(queries), ids.shape[1], pointer(out), pointer(ids))
    return out
