"""Real embeddings enlarged to galleries of any size, and stores that hold them.

A new vector is a real one, moved towards one of its ten nearest and by half of the difference of two other near ones, all
drawn from a seed: so clusters, their shapes and the noise between near scans are those of the real embeddings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mrcg.corpus.embeddings import embeddings_of
from mrcg.index.distances import BLOCK
from mrcg.storage import schemas
from mrcg.storage.attempts import Attempt, begin
from mrcg.storage.manifest import FileEntry, derive_version
from mrcg.storage.store import Store
from tests.manifests import make_manifest

Vectors = npt.NDArray[np.float16]
#: Scans in one file of pixels, and so of embeddings; near to what 192 MB of pixels are.
PER_FILE = 8192
PER_PATIENT = 20


def real_embeddings(place: str) -> npt.NDArray[np.float32]:
    """(n, d) embeddings of ``STORE/embeddings/VERSION``, each once."""
    url, _, version = place.rpartition("/embeddings/")
    return np.unique(embeddings_of(Store(url).artefact("embeddings", version)), axis=0).astype(np.float32)


def enlarged(real_nd: npt.NDArray[np.float32], count: int, seed: int) -> Iterator[Vectors]:
    """``count`` vectors like the real ones, block by block."""
    near = faiss.knn(real_nd, real_nd, 11)[1][:, 1:]
    rng = np.random.default_rng(seed)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        one, other = rng.integers(0, len(real_nd), (2, size))
        step = near[one, rng.integers(0, near.shape[1], size)]
        swing = near[other, rng.integers(0, near.shape[1], size)]
        share = rng.random((size, 1), dtype=np.float32)
        moved = real_nd[one] + share * (real_nd[step] - real_nd[one]) + 0.5 * (real_nd[other] - real_nd[swing])
        yield moved.astype(np.float16)


def write_vectors(real_nd: npt.NDArray[np.float32], count: int, seed: int, path: Path) -> None:
    """The same into a NumPy file, for those who know nothing of stores."""
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(count, real_nd.shape[1]))
    start = 0
    for block in enlarged(real_nd, count, seed):
        out[start : start + len(block)] = block
        start += len(block)
    out.flush()


@dataclass(frozen=True)
class Versions:
    """A corpus and its embeddings in a store."""

    corpus: str
    embeddings: str


def image_ids(count: int) -> list[str]:
    """Ids as those of scans: hashes."""
    return [hashlib.blake2b(b"%d" % number, digest_size=16).hexdigest() for number in range(count)]


def scans_table(ids: list[str], numbers: npt.NDArray[np.int64], labelled: int) -> pa.Table:
    """Table of ``schemas.SCANS``; numbers say which scan of a larger gallery each is, ``labelled`` of them have a class."""
    count = len(ids)
    patients = [f"{number // PER_PATIENT:032x}" for number in numbers.tolist()]
    stride = max(1, count // max(1, labelled))
    labels = [f"class {number % 4}" if number % stride == 0 else None for number in numbers.tolist()]
    places = np.arange(count)
    columns: dict[str, Any] = {
        "image_id": ids,
        "file": [f"images/g000-{place:05d}-00.parquet" for place in (places // PER_FILE).tolist()],
        "file_row": places % PER_FILE,
        "label": labels,
        "group_id": patients,
        "joins": [[]] * count,
        "cluster_id": ids,
        "generation": np.zeros(count, dtype=np.int32),
        "source_key": ids,
        "stamp": [""] * count,
        "frame": np.zeros(count, dtype=np.int32),
        "patient": patients,
        "year": 2000 + numbers % 20,
        "pixel_hash": ids,
        "difference_hash": [bytes(32)] * count,
    }
    arrays = [
        pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(count, field.type)
        for field in schemas.SCANS
    ]
    return pa.table(arrays, schema=schemas.SCANS)


def write_embeddings(
    attempt: Attempt, ids: list[str], vectors: Iterator[Vectors], dim: int, prefix: str = "embeddings/g000"
) -> list[FileEntry]:
    """Files of embeddings for files of pixels of ``PER_FILE`` each."""
    waiting = np.empty((0, dim), dtype=np.float16)
    entries, start = [], 0
    for block in vectors:
        waiting = np.concatenate([waiting, block])
        while len(waiting) >= PER_FILE or (start + len(waiting) == len(ids) and len(waiting)):
            some, waiting = waiting[:PER_FILE], waiting[PER_FILE:]
            column = pa.FixedSizeListArray.from_arrays(pa.array(some.reshape(-1)), dim)
            table = pa.table(
                {"image_id": ids[start : start + len(some)], "embedding": column}, schema=schemas.embeddings(dim)
            )
            name = f"{prefix}-{start // PER_FILE:05d}-00.arrow"
            entries.append(attempt.write(name, schemas.to_ipc(table)))
            start += len(some)
    return entries


def fill_store(store: Store, vectors_path: Path) -> Versions:
    """A corpus and embeddings of all vectors of a NumPy file."""
    vectors = np.load(vectors_path, mmap_mode="r", allow_pickle=False)
    count, dim = vectors.shape
    ids = image_ids(count)
    corpus = derive_version("corpus", {"count": count}, {})
    inputs = {"corpus": corpus}
    embeddings = derive_version("embeddings", {"dim": dim}, inputs)
    with begin(store, "corpus", corpus) as attempt:
        table = schemas.to_parquet(scans_table(ids, np.arange(count), 0))
        entry = attempt.write("scans/00000.parquet", table)
        attempt.publish(make_manifest("corpus", corpus, {"count": count}, {}, {"images": count}, [entry]))
    with begin(store, "embeddings", embeddings, inputs) as attempt:
        blocks = (np.asarray(vectors[start : start + BLOCK]) for start in range(0, count, BLOCK))
        entries = write_embeddings(attempt, ids, blocks, dim)
        attempt.publish(make_manifest("embeddings", embeddings, {"dim": dim}, inputs, {"dim": dim}, entries))
    return Versions(corpus, embeddings)
