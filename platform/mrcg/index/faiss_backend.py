"""All calls to FAISS: create, train, search, write and read an index of each kind.

A search never changes a shared index: ``nprobe`` and ``efSearch`` are passed with each call.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mrcg.arrays import Distances, Fp32Vectors, Mask, RowNumbers
from mrcg.errors import require
from mrcg.index.distances import MATMUL_QUERIES, matmul_knn
from mrcg.index.layout import Shape

log = logging.getLogger(__name__)

#: A FAISS index; FAISS's Python classes have no type annotations.
Faiss = Any

#: Training vectors per coarse cell; FAISS warns below 39.
TRAIN_PER_LIST = 64
HNSW_EF_CONSTRUCTION = 80
#: FAISS's ``parallel_mode`` that splits queries over threads; by default only ``search`` does, not
#: ``search_preassigned``.
_PARALLEL_OVER_QUERIES = 3
#: FAISS's SuperKMeans needs at least this many dimensions.
SUPER_KMEANS_DIM = 32
#: OPQ training: 8 rounds on 16,384 vectors are within 1 % of FAISS's default (50 on 65,536), in a tenth of the time.
OPQ_ROUNDS, OPQ_VECTORS = 8, 16_384


class _Sink(Protocol):
    def write(self, data: Any) -> int: ...


def use_threads(count: int) -> None:
    """Set the number of threads that FAISS uses; 0 takes ``OMP_NUM_THREADS``, or all cores where it is not set."""
    threads = count or int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    require("faiss").omp_set_num_threads(threads)


def factory(shape: Shape) -> str:
    """Return FAISS's factory string for a shape."""
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
    """Return an empty, untrained index."""
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
            # It only prepares polysemous filtering, which is not used, and takes longer than all other steps together.
            faiss.downcast_index(ivf).do_polysemous_training = False
    return index


def train(shape: Shape, sample_nd: npt.NDArray[np.float32], seed: int, gpu: bool = False) -> Faiss:
    """Return an empty index, its cells (and codes) trained on a sample; ``gpu`` assigns vectors to cells on GPUs."""
    faiss, index = require("faiss"), new_index(shape, seed)
    # FAISS does not own the clustering index: keep it alive during training, and detach it before the index is used.
    ivf, assigner = faiss.extract_index_ivf(index), _gpu_assigner(index) if gpu else None
    ivf.clustering_index = assigner
    # SuperKMeans rules out most cells by a part of the dimensions: as good, and faster the more cells and dimensions.
    ivf.cp.use_super_kmeans = assigner is None and shape.inner_dim >= SUPER_KMEANS_DIM
    index.train(np.ascontiguousarray(sample_nd))
    ivf.clustering_index = None
    return index


def _gpu_assigner(index: Faiss) -> Faiss:
    """Return the index that assigns vectors to cells during training on this process's GPUs, None where it has none."""
    faiss = require("faiss")
    # On some systems the FAISS wheel has no GPU functions at all.
    count = faiss.get_num_gpus() if hasattr(faiss, "index_cpu_to_all_gpus") else 0
    log.info("training coarse cells on %s", f"{count} GPUs" if count else "the CPU: FAISS sees no GPU")
    return faiss.index_cpu_to_all_gpus(faiss.IndexFlatL2(faiss.extract_index_ivf(index).d)) if count else None


def write_index(index: Faiss, sink: _Sink) -> None:
    """Write an index to a sink in blocks, without a copy of the whole in memory.

    Raises:
        Exception: whatever ``sink.write`` raises.
    """
    faiss = require("faiss")
    errors: list[Exception] = []

    def write(data: bytes) -> int:
        try:
            return len(data) if errors else sink.write(data)
        except Exception as error:
            # FAISS flushes its last buffer in the writer's destructor, where an exception would be lost.
            errors.append(error)
            return len(data)

    writer = faiss.BufferedIOWriter(faiss.PyCallbackIOWriter(write), 2**20)
    faiss.write_index(index, writer)
    del writer
    if errors:
        raise errors[0]


def read_index(path: Path, mapped: bool = False) -> Faiss:
    """Read an index from a file, to add vectors to it or copy from it; call ``make_searchable`` before a search.

    Args:
        path: of a file whose hash was checked.
        mapped: leave the inverted lists on disk.
    """
    faiss = require("faiss")
    flags = faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE | (faiss.IO_FLAG_MMAP if mapped else 0)
    return faiss.read_index(str(path), flags)


def make_searchable(index: Faiss, shape: Shape) -> Faiss:
    """Prepare an index for fast search: distance tables of PQ codes (they take memory), queries split over threads."""
    if not shape.trained:
        return index
    ivf = require("faiss").extract_index_ivf(index)
    ivf.parallel_mode = _PARALLEL_OVER_QUERIES
    if shape.kind == "opq_ivf_pq":
        require("faiss").downcast_index(ivf).precompute_table()
    return index


def is_centroid(trained: Faiss, shape: Shape, vectors_nd: Fp32Vectors) -> npt.NDArray[np.bool_]:
    """Return an (n,) mask of the vectors that equal the centroid of a coarse cell."""
    if not len(vectors_nd):
        return np.zeros(0, dtype=bool)
    if shape.kind == "opq_ivf_pq":
        vectors_nd = trained.chain.at(0).apply(vectors_nd)
    distances = require("faiss").extract_index_ivf(trained).quantizer.search(vectors_nd, 1)[0][:, 0]
    # Rounding turns a distance of 0 into one in proportion to the squared norm of the vector.
    norms = np.einsum("nd,nd->n", vectors_nd, vectors_nd)
    equal: npt.NDArray[np.bool_] = distances <= 1e-5 * np.maximum(norms, 1e-30)
    return equal


def candidates(
    index: Faiss, shape: Shape, queries_qd: Fp32Vectors, count: int, allowed: Mask | None, nprobe_or_ef: int
) -> tuple[Distances, RowNumbers]:
    """Return (q, count) distances as this kind computes them, and ids; id -1 where fewer were found.

    Args:
        index: with vectors in it.
        shape: of the index.
        queries_qd: (q, d) queries.
        count: candidates per query.
        allowed: mask over ids; None allows all.
        nprobe_or_ef: nprobe (IVF) or ef_search (HNSW).
    """
    faiss, selector = require("faiss"), None
    if allowed is not None:
        selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    if shape.trained:
        distances, ids = _search_ivf(index, shape, queries_qd, count, min(nprobe_or_ef, shape.lists), selector)
    elif shape.kind == "hnsw":
        parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=max(nprobe_or_ef, count))
        distances, ids = index.search(queries_qd, count, params=parameters)
    else:
        parameters = None if selector is None else faiss.SearchParameters(sel=selector)
        distances, ids = index.search(queries_qd, count, params=parameters)
    assert allowed is None or allowed[ids[ids >= 0]].all(), "a search returned a row that is not allowed"
    return distances, ids


def _search_ivf(
    index: Faiss, shape: Shape, queries_qd: Fp32Vectors, count: int, nprobe: int, selector: Faiss
) -> tuple[Distances, RowNumbers]:
    faiss = require("faiss")
    if shape.kind == "opq_ivf_pq":
        queries_qd = index.chain.at(0).apply(queries_qd)
    ivf = faiss.extract_index_ivf(index)
    parameters = faiss.SearchParametersIVF(sel=selector, nprobe=nprobe)
    if len(queries_qd) < MATMUL_QUERIES:
        distances, ids = ivf.search(queries_qd, count, params=parameters)
        return distances, ids
    cells = matmul_knn(queries_qd, centroids(ivf), nprobe)[1]
    # Distances to codes of residuals are based on these: they must equal those of a single query to the last bit.
    cell_distances = flat_distances(ivf.quantizer, queries_qd, cells)
    distances, ids = np.empty((len(queries_qd), count), np.float32), np.empty((len(queries_qd), count), np.int64)
    x, keys, coarse, out, labels = (faiss.swig_ptr(a) for a in (queries_qd, cells, cell_distances, distances, ids))
    ivf.search_preassigned_c(len(queries_qd), x, count, keys, coarse, out, labels, False, parameters)
    return distances, ids


def centroids(ivf: Faiss) -> Fp32Vectors:
    """Return the (lists, d) centroids of the coarse cells, a view that is valid only as long as the index."""
    return flat_vectors(require("faiss").downcast_index(ivf.quantizer))


def flat_vectors(flat: Faiss) -> Fp32Vectors:
    """Return the (n, d) vectors of a flat index, a view that is valid only as long as the index."""
    vectors: Fp32Vectors = (
        require("faiss").rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)
    )
    return vectors


def flat_distances(flat: Faiss, queries_qd: Fp32Vectors, ids_qc: RowNumbers) -> Distances:
    """Return the (q, c) exact squared L2 to vectors of a flat index, as ``distances_to`` does; inf for id -1."""
    pointer = require("faiss").swig_ptr
    queries, ids = np.ascontiguousarray(queries_qd), np.ascontiguousarray(ids_qc)
    out = np.full(ids.shape, np.inf, dtype=np.float32)
    if ids.size:
        flat = require("faiss").downcast_index(flat)
        flat.compute_distance_subset(len(ids), pointer(queries), ids.shape[1], pointer(out), pointer(ids))
    return out
