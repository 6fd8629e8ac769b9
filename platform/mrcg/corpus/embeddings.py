"""Stored embeddings: reading them by row without loading all of them, and reusing files of an earlier version."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mrcg.arrays import Fp16Vectors, RowNumbers
from mrcg.corpus.reader import companion_file
from mrcg.storage import schemas
from mrcg.storage.manifest import FileEntry
from mrcg.storage.store import Artefact, Store

FOLDER = "embeddings/"


@dataclass(frozen=True)
class FileRows:
    """An embedding file and its number of rows."""

    name: str
    rows: int


def files_of(scans: pa.Table) -> tuple[FileRows, ...]:
    """Return the embedding files of a corpus, in row order.

    Args:
        scans: table of ``schemas.SCANS``; only its column ``file`` is used.
    """
    names = scans["file"].combine_chunks()
    if not len(names):
        return ()
    encoded = pc.dictionary_encode(names)
    codes = encoded.indices.to_numpy()
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
    ordered = encoded.dictionary.take(pa.array(codes[starts])).to_pylist()
    assert len(set(ordered)) == len(ordered), "rows of one pixel file are not consecutive"
    lengths = np.diff(np.r_[starts, len(codes)]).tolist()
    return tuple(FileRows(embedding_file(name), rows) for name, rows in zip(ordered, lengths, strict=True))


def embedding_file(images: str) -> str:
    """Return the name of the embedding file that belongs to a pixel file."""
    return companion_file(images, FOLDER)


@dataclass(frozen=True)
class EmbeddingRows:
    """(rows, d) embeddings of a corpus, memory-mapped per file; each file's hash is checked when it is first read."""

    artefact: Artefact
    files: Sequence[FileRows]
    _open: dict[str, Fp16Vectors] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return sum(file.rows for file in self.files)

    def blocks(self, rows: RowNumbers, size: int) -> Iterator[Fp16Vectors]:
        """Yield the vectors of some rows in blocks of at most ``size``; a block is valid only until the next one.

        Args:
            rows: ascending, without repeats.
            size: maximum rows of a block.
        """
        buffer, pending = np.empty((0, 0), dtype=np.float16), None
        for piece in self._pieces(rows, size):
            if pending is not None and len(pending) + len(piece) > size:
                yield pending
                pending = None
            if pending is None:
                pending = piece
                continue
            start, end = len(pending), len(pending) + len(piece)
            if not len(buffer):
                buffer = np.empty((min(size, len(rows)), piece.shape[1]), dtype=np.float16)
            if pending.base is not buffer:
                buffer[:start] = pending
            buffer[start:end] = piece
            pending = buffer[:end]
        if pending is not None:
            yield pending

    def _pieces(self, rows: RowNumbers, size: int) -> Iterator[Fp16Vectors]:
        """Yield the vectors of some rows, at most ``size`` at a time and never across two files."""
        start, reads = 0, []
        for file in self.files:
            file_rows = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + file.rows)] - start
            start += file.rows
            if len(file_rows):
                reads.append((file, file_rows))
        with ThreadPoolExecutor(1) as prefetcher:
            # The next file is read and hashed while the vectors of this one are used.
            futures = [prefetcher.submit(self._vectors, file) for file, _ in reads[:1]]
            for number, (_, file_rows) in enumerate(reads):
                futures += [prefetcher.submit(self._vectors, file) for file, _ in reads[number + 1 : number + 2]]
                vectors = futures.pop(0).result()
                for first in range(0, len(file_rows), size):
                    piece = file_rows[first : first + size]
                    # Consecutive rows are a view, not a copy.
                    consecutive = piece[-1] - piece[0] + 1 == len(piece)
                    yield vectors[piece[0] : piece[-1] + 1] if consecutive else vectors[piece]

    def take(self, rows: RowNumbers) -> Fp16Vectors:
        """Return the (n, d) vectors of some rows, in any order and with repeats."""
        distinct, places = np.unique(rows, return_inverse=True)
        return np.concatenate(list(self.blocks(distinct, max(1, len(distinct)))))[places]

    def _vectors(self, file: FileRows) -> Fp16Vectors:
        if file.name not in self._open:
            vectors = vectors_in(read_table(self.artefact, file.name))
            assert len(vectors) == file.rows, f"{file.name} does not have as many rows as the corpus expects"
            self._open[file.name] = vectors
        return self._open[file.name]


@functools.lru_cache(maxsize=2)
def open_embeddings(store: str, version: str, files: tuple[FileRows, ...]) -> EmbeddingRows:
    """Open the embeddings of a store by row, cached so that a process hashes each file once for several tasks."""
    return EmbeddingRows(Store(store).artefact("embeddings", version), files)


def vectors_in(table: pa.Table) -> Fp16Vectors:
    """Return the (n, d) vectors of one file's table; a memory-mapped table with a single chunk is not copied."""
    column = table["embedding"]
    # combine_chunks copies even a single chunk.
    column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    dim = table.schema.field("embedding").type.list_size
    values: npt.NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
    return values.astype(np.float16, copy=False).reshape(-1, dim)


def read_table(artefact: Artefact, name: str) -> pa.Table:
    """Memory-map the ids and embeddings of one file."""
    return pa.ipc.open_file(pa.memory_map(str(artefact.on_disk(name)))).read_all()


def reusable_file(artefact: Artefact, name: str, image_ids: pa.Array) -> FileEntry | bytes | None:
    """Return what an earlier version can supply for an embedding file.

    Args:
        artefact: earlier version of kind ``embeddings``, made by the same encoder.
        name: of the file.
        image_ids: ids that the new file must hold, in order.

    Returns:
        An entry that refers to the old file if its ids are the same; the new file's bytes if the old one holds
        all the ids among others or in another order; otherwise None.
    """
    if name not in artefact.names(FOLDER):
        return None
    table = read_table(artefact, name)
    stored_ids = table["image_id"].combine_chunks()
    if stored_ids.equals(image_ids):
        return artefact.reference(name)
    places = pc.index_in(image_ids, value_set=stored_ids)
    if places.null_count:
        return None
    return schemas.to_ipc(table.take(places).combine_chunks())


def embeddings_of(artefact: Artefact) -> Fp16Vectors:
    """Read the (rows, d) stored embeddings of the whole corpus into memory."""
    return np.concatenate([vectors_in(schemas.from_ipc(data)) for _, data in artefact.iter_files(FOLDER)])
