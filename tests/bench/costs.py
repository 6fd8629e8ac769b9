"""Measure the unit costs that the planner counts with, on one core, and write them beside it.

    python -m tests.bench.costs --real STORE/embeddings/VERSION --out platform/mrcg/index_build/costs.json

Vectors are those of the index benchmark (real embeddings enlarged by a mixture). Every cost is the best of a few turns: what
the machine takes where nobody disturbs it. Memory is of a process that has loaded what a search needs, and of the tables
that each row needs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mrcg.config.loading import load_config
from mrcg.index import faiss_backend
from mrcg.index.layout import PartFacts, Shape, part_files
from mrcg.index.part import Part
from mrcg.index.sharded_index import ShardedIndex
from mrcg.index_build.build_plan import IndexWork, plan_build, rows_table
from mrcg.index_build.sizing import LINKS, Costs
from mrcg.storage import schemas
from mrcg.storage.store import Store
from tests.bench.measured import measured
from tests.bench.mixture import enlarged, fill_store, image_ids, real_embeddings, scans_table, write_vectors

Floats = npt.NDArray[np.float32]
COUNT, LISTS, GRAPH = 100_000, 1024, 20_000
#: Costs of a graph grow with the logarithm of its size; the planner's are those of 100,000.
DEPTH = np.log2(GRAPH) / np.log2(100_000)
TURNS = 3


def best(work: Callable[[], object], turns: int = TURNS) -> float:
    """Seconds of the fastest turn."""
    seconds = []
    for _ in range(turns):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def searching(vectors: Floats, queries: Floats) -> dict[str, float | dict[str, float]]:
    """Costs of scanning, of cells, of adding and of training."""
    dim = vectors.shape[1]
    flat = faiss.IndexFlatL2(dim)
    flat.add(vectors)
    scan, encode, coarse, rotation = {}, {}, 0.0, 0.0
    for kind in ("ivf_flat", "ivf_sq", "opq_ivf_pq"):
        shape = Shape(kind=kind, dim=dim, lists=LISTS, pq_bytes=64 if kind == "opq_ivf_pq" else 0)
        start = time.perf_counter()
        index = faiss_backend.train(shape, vectors[: LISTS * faiss_backend.TRAIN_PER_LIST], 1)
        trained = time.perf_counter() - start
        ivf = faiss.extract_index_ivf(index)
        if kind == "ivf_flat":
            coarse = best(lambda ivf=ivf: ivf.quantizer.search(vectors[:16_384], 1)) / (16_384 * LISTS * dim)
            plain_training = trained
        filled = best(lambda index=index: index.add(vectors), 1)
        encode[kind] = max(0.0, filled - COUNT * LISTS * dim * coarse) / (COUNT * dim)
        if kind == "opq_ivf_pq":
            rotation = max(0.0, trained - plain_training) / dim**2
        few, many = (
            best(lambda n=n, i=index, s=shape: faiss_backend.candidates(i, s, queries, 66, None, n)) for n in (8, 136)
        )
        width = shape.pq_bytes or dim
        scan[kind] = max(0.0, many - few) / (len(queries) * 128 / LISTS * COUNT * width)
    return {
        "flat_scan": best(lambda: flat.search(queries[:64], 66)) / (64 * COUNT * dim),
        "coarse": coarse,
        "list_scan": scan,
        "encode": encode,
        "rotation": rotation,
    }


def graphs(vectors: Floats, queries: Floats) -> dict[str, float]:
    """Costs of a graph."""
    dim = vectors.shape[1]
    shape = Shape(kind="hnsw", dim=dim, links=LINKS)
    index = faiss_backend.new_index(shape, 1)
    added = best(lambda: index.add(vectors[:GRAPH]), 1)
    few, many = (best(lambda n=n: faiss_backend.candidates(index, shape, queries, 66, None, n)) for n in (66, 322))
    step = max(0.0, many - few) / (256 * len(queries) * dim)
    return {"hnsw_add": added / (GRAPH * dim) / DEPTH, "hnsw_step": step / DEPTH}


def storing(folder: Path) -> dict[str, float]:
    """Costs of a byte that is read, hashed and written, and of a row's facts."""
    store, data = Store(str(folder)), np.random.default_rng(1).bytes(2**26)
    store.write_bytes("in", data)

    def copy() -> None:
        with store.writer("out") as sink:
            sink.write(store.read_bytes("in"))

    scans = scans_table(image_ids(COUNT), np.arange(COUNT), 0)
    return {"store": best(copy) / 2**26, "row": best(lambda: schemas.to_ipc(rows_table(scans))) / COUNT}


def rows_in_memory(count: int, dim: int, known: bool = True) -> int:
    """Open a part of so many rows and search it once; ``known``: and know what each row is."""
    with tempfile.TemporaryDirectory() as name:
        folder, files = Path(name), part_files("p")
        for file in (files.vectors, files.rows):
            (folder / file).parent.mkdir(exist_ok=True)
        shape = Shape(kind="flat", dim=dim)
        np.zeros((count, dim), dtype=np.float16).tofile(folder / files.vectors)
        scans = scans_table(image_ids(count), np.arange(count), 0)
        with pa.ipc.new_file(str(folder / files.rows), schemas.ROWS) as sink:
            sink.write_table(rows_table(scans).combine_chunks())
        del scans
        pa.default_memory_pool().release_unused()
        return measured(_serve, folder, shape, PartFacts(shard=0, name="p", rows=count, live=count), known).peak_bytes


def _serve(folder: Path, shape: Shape, facts: PartFacts, known: bool) -> int:
    index = ShardedIndex(shape, [Part.open(lambda name: folder / name, shape, facts)], 0)
    assert not known or len(index) == facts.rows
    return len(index.search(np.zeros((64, shape.dim), dtype=np.float32), 50).rows_qk)


def rows_drawn_up(count: int, dim: int) -> int:
    """Draw an index of so many rows up."""
    with tempfile.TemporaryDirectory() as name:
        write_vectors(np.ones((16, dim), dtype=np.float32), count, 1, Path(name) / "vectors.npy")
        versions = fill_store(Store(name), Path(name) / "vectors.npy")
        settings = load_config(None, ["index.kind=flat", "index.shards=4"]).index
        work = IndexWork(name, versions.corpus, versions.embeddings, None, "attempt", settings, 1)
        return measured(plan_build, work).peak_bytes


def memory() -> dict[str, int]:
    """Bytes of a process, and of each row: beside its vector in memory, and while an index is drawn up."""
    dim, few, many = 8, 1000, 1_001_000
    process, full, placed = (rows_in_memory(*one) for one in ((few, dim), (many, dim), (many, dim, False)))
    # Between two sizes that are not small: what the first rows take is the process'.
    some, drawn = rows_drawn_up(100_000, dim), rows_drawn_up(many, dim)
    drawn_bytes = (drawn - some) // (many - 100_000)
    return {
        "process_bytes": process,
        "row_bytes": (full - process) // (many - few) - 4 * dim,
        "placed_bytes": (placed - process) // (many - few) - 4 * dim,
        "builder_bytes": some - 100_000 * drawn_bytes,
        "drawn_bytes": drawn_bytes,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", help="a version of embeddings, STORE/embeddings/VERSION; without it bytes alone")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    faiss_backend.use_threads(1)
    seconds = _seconds(options.real) if options.real else json.loads(options.out.read_text())
    options.out.write_text(Costs.model_validate({**seconds, **memory()}).model_dump_json(indent=1) + "\n")


def _seconds(place: str) -> dict[str, Any]:
    real = real_embeddings(place)
    vectors = np.concatenate(list(enlarged(real, COUNT, 1))).astype(np.float32)
    queries = next(enlarged(real, 512, 2)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        return {
            "machine": _machine(),
            "faiss": faiss.__version__,
            **searching(vectors, queries),
            **graphs(vectors, queries),
            **storing(Path(folder)),
        }


def _machine() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


if __name__ == "__main__":
    main()
