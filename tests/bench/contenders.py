"""What the index is measured beside: plain FAISS with the same index, and other libraries with theirs.

Each builds from one file of half-precision vectors and writes to disk, opens what it wrote, and searches with an
effort that can be raised. All use the threads they are given.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import faiss
import numpy as np
import numpy.typing as npt

from mrcg.config.loading import load_config
from mrcg.execution.executor import LocalExecutor, silent
from mrcg.index import faiss_backend
from mrcg.index.distances import BLOCK
from mrcg.index.layout import IndexFacts, KindName, Shape
from mrcg.index.part import Part
from mrcg.index.sharded_index import ShardedIndex
from mrcg.index_build.build import build_index
from mrcg.index_build.build_plan import IndexWork
from mrcg.index_build.sizing import initial_nprobe_or_ef, shape_of
from mrcg.storage.store import Store
from tests.bench.mixture import Versions

Queries = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
RECALL = 0.95
SEED = 1
THREADS = 2


class Searcher(Protocol):
    """An index that is open: (q, k) rows for (q, d) queries, with an effort."""

    first: int
    most: int

    def search(self, queries_qd: Queries, k: int, effort: int) -> Rows: ...


class Contender(Protocol):
    """One library with one kind of index.

    ``needs``: modules that are imported before a build's time runs.
    """

    needs: ClassVar[tuple[str, ...]]

    @property
    def name(self) -> str: ...

    def build(self, vectors: Path, folder: Path) -> dict[str, Any]: ...

    def open(self, folder: Path) -> Searcher: ...


@dataclass(frozen=True)
class Ours:
    """The sharded index of this project, built by library calls, one piece after the other."""

    needs: ClassVar[tuple[str, ...]] = ("pyarrow.parquet", "pyarrow.dataset", "fsspec.implementations.local")
    kind: KindName
    shards: int
    store: str
    versions: Versions

    @property
    def name(self) -> str:
        return f"ours, {self.shards} shard{'s' if self.shards > 1 else ''}"

    def build(self, vectors: Path, folder: Path) -> dict[str, Any]:
        """Build as the stage does, with the measuring of recall that is a part of it."""
        settings = load_config(None, [f"index.kind={self.kind}", f"index.shards={self.shards}"]).index
        url, versions = self.store, self.versions
        work = IndexWork(url, versions.corpus, versions.embeddings, None, str(folder), settings, SEED, THREADS)
        made = build_index(work, LocalExecutor(), silent)
        return {"steps": made.seconds, "recall": made.facts.recall, "effort": made.facts.nprobe_or_ef}

    def open(self, folder: Path) -> Searcher:
        store = Store(self.store)
        output = f"{folder}/output"
        facts = IndexFacts.model_validate_json(store.read_bytes(f"{output}/index.json"))
        parts = [Part.open(lambda name: Path(store.path(f"{output}/{name}")), facts.shape, one) for one in facts.parts]
        return _Ours(ShardedIndex(facts.shape, parts, facts.nprobe_or_ef))


class _Ours:
    def __init__(self, index: ShardedIndex) -> None:
        faiss_backend.use_threads(THREADS)
        assert len(index)  # who serves knows what each row is
        self.index, self.first, self.most = index, _first(index.shape), index.shape.lists or 4096

    def search(self, queries_qd: Queries, k: int, effort: int) -> Rows:
        return self.index.search(queries_qd, k, None, effort).rows_qk


def _first(shape: Shape) -> int:
    return initial_nprobe_or_ef(shape, RECALL)


@dataclass(frozen=True)
class Plain:
    """FAISS alone: the same index trained on the same number of vectors; where ours refines, so does this one.

    ``exact``: its answers are ordered by exact distances even where the index alone would do, as ours always are.
    ``pruned``: it is told to learn its cells as ours does, by SuperKMeans, which it does not do by itself.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    kind: KindName
    count: int
    dim: int
    exact: bool = False
    pruned: bool = False

    @property
    def name(self) -> str:
        return "plain FAISS" + ", exact" * self.exact + ", SuperKMeans" * self.pruned

    @property
    def shape(self) -> Shape:
        return shape_of(self.kind, self.count, self.dim, RECALL)

    def build(self, vectors: Path, folder: Path) -> dict[str, Any]:
        faiss.omp_set_num_threads(THREADS)
        shape, data = self.shape, np.load(vectors, mmap_mode="r", allow_pickle=False)
        index = faiss_backend.new_index(shape, SEED)
        if shape.trained:
            count = min(len(data), max(faiss_backend.OPQ_VECTORS, shape.lists * faiss_backend.TRAIN_PER_LIST))
            rows = np.sort(np.random.default_rng(SEED).permutation(len(data))[:count])
            faiss.extract_index_ivf(index).cp.use_super_kmeans = self.pruned
            index.train(data[rows].astype(np.float32))
        if shape.refine > 1 or self.exact:
            # Exact distances from half-precision vectors, as ours.
            exact = faiss.IndexScalarQuantizer(self.dim, faiss.ScalarQuantizer.QT_fp16)
            index = faiss.IndexRefine(index, exact)
        for start in range(0, len(data), BLOCK):
            index.add(data[start : start + BLOCK].astype(np.float32))
        faiss.write_index(index, str(folder / "index.faiss"))
        with (folder / "index.faiss").open("rb") as file:
            os.fsync(file.fileno())  # on disk, as ours
        return {}

    def open(self, folder: Path) -> Searcher:
        return _Plain(faiss.read_index(str(folder / "index.faiss")), self.shape, self.exact)


class _Plain:
    def __init__(self, index: Any, shape: Shape, exact: bool) -> None:
        faiss.omp_set_num_threads(THREADS)
        self.index, self.shape, self.first, self.most = index, shape, _first(shape), shape.lists or 4096
        self.refined = exact or shape.refine > 1

    def search(self, queries_qd: Queries, k: int, effort: int) -> Rows:
        shape, parameters = self.shape, None
        if shape.trained:
            parameters = faiss.SearchParametersIVF(nprobe=min(effort, shape.lists))
            if shape.kind == "opq_ivf_pq":
                parameters = faiss.SearchParametersPreTransform(index_params=parameters)
        elif shape.kind == "hnsw":
            parameters = faiss.SearchParametersHNSW(efSearch=max(effort, k))
        if self.refined:
            parameters = faiss.IndexRefineSearchParameters(k_factor=shape.refine, base_index_params=parameters)
        rows: Rows = self.index.search(queries_qd, k, params=parameters)[1]
        return rows


@dataclass(frozen=True)
class Hnswlib:
    """hnswlib with the links and the breadth of building of ours."""

    needs: ClassVar[tuple[str, ...]] = ("hnswlib",)
    dim: int

    @property
    def name(self) -> str:
        return "hnswlib"

    def build(self, vectors: Path, folder: Path) -> dict[str, Any]:
        import hnswlib

        data = np.load(vectors, mmap_mode="r", allow_pickle=False)
        index = hnswlib.Index(space="l2", dim=self.dim)
        index.init_index(len(data), ef_construction=faiss_backend.HNSW_EF_CONSTRUCTION, M=32, random_seed=SEED)
        index.set_num_threads(THREADS)
        for start in range(0, len(data), BLOCK):
            index.add_items(
                data[start : start + BLOCK].astype(np.float32), np.arange(start, min(len(data), start + BLOCK))
            )
        index.save_index(str(folder / "index.bin"))
        return {}

    def open(self, folder: Path) -> Searcher:
        import hnswlib

        index = hnswlib.Index(space="l2", dim=self.dim)
        index.load_index(str(folder / "index.bin"))
        index.set_num_threads(THREADS)
        return _Hnswlib(index)


class _Hnswlib:
    first, most = 50, 4096

    def __init__(self, index: Any) -> None:
        self.index = index

    def search(self, queries_qd: Queries, k: int, effort: int) -> Rows:
        self.index.set_ef(max(effort, k))
        rows: Rows = self.index.knn_query(queries_qd, k)[0].astype(np.int64)
        return rows


@dataclass(frozen=True)
class Usearch:
    """USearch with the links and the breadth of building of ours."""

    needs: ClassVar[tuple[str, ...]] = ("usearch.index",)
    dim: int

    @property
    def name(self) -> str:
        return "USearch"

    def build(self, vectors: Path, folder: Path) -> dict[str, Any]:
        from usearch.index import Index

        data = np.load(vectors, mmap_mode="r", allow_pickle=False)
        index = Index(
            ndim=self.dim, metric="l2sq", dtype="f32", connectivity=32, expansion_add=faiss_backend.HNSW_EF_CONSTRUCTION
        )
        for start in range(0, len(data), BLOCK):
            block = data[start : start + BLOCK].astype(np.float32)
            index.add(np.arange(start, start + len(block)), block, threads=THREADS)
        index.save(str(folder / "index.usearch"))
        return {}

    def open(self, folder: Path) -> Searcher:
        from usearch.index import Index

        index = Index.restore(str(folder / "index.usearch"))
        assert index is not None
        return _Usearch(index)


class _Usearch:
    first, most = 50, 4096

    def __init__(self, index: Any) -> None:
        self.index = index

    def search(self, queries_qd: Queries, k: int, effort: int) -> Rows:
        self.index.expansion_search = max(effort, k)
        found = self.index.search(queries_qd, k, threads=THREADS).keys.astype(np.int64)
        return np.atleast_2d(found)


@dataclass(frozen=True)
class Lance:
    """LanceDB's IVF-flat with as many cells as ours; it answers one query at a time."""

    needs: ClassVar[tuple[str, ...]] = ("lancedb.index", "pyarrow")
    count: int
    dim: int

    @property
    def name(self) -> str:
        return "LanceDB"

    def build(self, vectors: Path, folder: Path) -> dict[str, Any]:
        import lancedb
        import pyarrow as pa
        from lancedb.index import IvfFlat

        data = np.load(vectors, mmap_mode="r", allow_pickle=False)
        schema = pa.schema([("row", pa.int64()), ("vector", pa.list_(pa.float32(), self.dim))])

        def batches() -> Any:
            for start in range(0, len(data), BLOCK):
                block = data[start : start + BLOCK].astype(np.float32)
                column = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), self.dim)
                yield pa.record_batch([pa.array(np.arange(start, start + len(block))), column], schema=schema)

        table = lancedb.connect(str(folder)).create_table("gallery", batches(), schema=schema)
        lists = shape_of("ivf_flat", self.count, self.dim, RECALL).lists
        table.create_index("vector", config=IvfFlat(distance_type="l2", num_partitions=lists))
        return {}

    def open(self, folder: Path) -> Searcher:
        import lancedb

        return _Lance(lancedb.connect(str(folder)).open_table("gallery"), self.count, self.dim)


class _Lance:
    def __init__(self, table: Any, count: int, dim: int) -> None:
        shape = shape_of("ivf_flat", count, dim, RECALL)
        self.table, self.first, self.most = table, _first(shape), shape.lists

    def search(self, queries_qd: Queries, k: int, effort: int) -> Rows:
        found = []
        for query in queries_qd:
            wanted = self.table.search(query).nprobes(effort).limit(k).select(["row", "_distance"])
            found.append(wanted.to_arrow()["row"].to_numpy())
        return np.stack([np.pad(rows, (0, k - len(rows)), constant_values=-1) for rows in found])


#: Run by an interpreter of its own, whose NumPy is older.
_AUTOFAISS = """
import sys, time, numpy, faiss
from autofaiss import build_index
vectors, out, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
faiss.omp_set_num_threads(threads)
start = time.perf_counter()
build_index(vectors, index_path=out + "/knn.index", index_infos_path=out + "/infos.json", metric_type="l2",
            file_format="npy", max_index_memory_usage="16G", current_memory_available="20G", nb_cores=threads,
            should_be_memory_mappable=True, save_on_disk=True, verbose=40)
print(time.perf_counter() - start)
"""


@dataclass(frozen=True)
class Autofaiss:
    """autofaiss chooses the index itself; built by the Python of an environment of its own."""

    needs: ClassVar[tuple[str, ...]] = ()
    python: str

    @property
    def name(self) -> str:
        return "autofaiss"

    def build(self, vectors: Path, folder: Path) -> dict[str, Any]:
        alone = folder / "vectors"
        alone.mkdir()
        (alone / "part.npy").symlink_to(vectors)
        words = [self.python, "-c", _AUTOFAISS, str(alone), str(folder), str(THREADS)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        return {"own_seconds": float(done.stdout.split()[-1])}

    def open(self, folder: Path) -> Searcher:
        return _Autofaiss(faiss.read_index(str(folder / "knn.index")))


class _Autofaiss:
    def __init__(self, index: Any) -> None:
        faiss.omp_set_num_threads(THREADS)
        self.index, self.space = index, faiss.ParameterSpace()
        self.hnsw = isinstance(faiss.downcast_index(index), faiss.IndexHNSW)
        self.first, self.most = (50, 4096) if self.hnsw else (4, 4096)

    def search(self, queries_qd: Queries, k: int, effort: int) -> Rows:
        self.space.set_index_parameter(self.index, "efSearch" if self.hnsw else "nprobe", effort)
        rows: Rows = self.index.search(queries_qd, k)[1]
        return rows
