"""Stored embeddings, read by row without loading all of them; and which of an earlier version's can be used again."""

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

from mrcg.corpus.reader import IMAGES
from mrcg.storage import schemas
from mrcg.storage.manifest import FileEntry
from mrcg.storage.store import Artefact, Store

FOLDER = "embeddings/"
Rows = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float16]


@dataclass(frozen=True)
class FileRows:
    """A file of embeddings and how many rows of the corpus it has."""

    name: str
    rows: int


def files_of(scans: pa.Table) -> tuple[FileRows, ...]:
    """The files of embeddings of a corpus, in the order of its rows.

    Args:
        scans: table of ``schemas.SCANS``, at least its column ``file``.
    """
    names = scans["file"].combine_chunks()
    if not len(names):
        return ()
    codes = pc.dictionary_encode(names)
    numbers = codes.indices.to_numpy()
    starts = np.flatnonzero(np.r_[True, numbers[1:] != numbers[:-1]])
    ordered = codes.dictionary.take(pa.array(numbers[starts])).to_pylist()
    assert len(set(ordered)) == len(ordered), "rows of one file of pixels do not stand together"
    lengths = np.diff(np.r_[starts, len(numbers)]).tolist()
    return tuple(FileRows(embedding_file(name), rows) for name, rows in zip(ordered, lengths, strict=True))


def embedding_file(images: str) -> str:
    """Name of the embeddings of a file of pixels."""
    return images.replace(IMAGES, FOLDER).replace(".parquet", ".arrow")


@dataclass(frozen=True)
class EmbeddingRows:
    """(rows, d) embeddings of a corpus, memory-mapped file by file; each file is hashed when it is first touched."""

    artefact: Artefact
    files: Sequence[FileRows]
    _open: dict[str, Vectors] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return sum(file.rows for file in self.files)

    def blocks(self, rows: Rows, size: int) -> Iterator[Vectors]:
        """Vectors of rising rows, each once, at most ``size`` at a time; a block is valid until the next one."""
        buffer, waiting = np.empty((0, 0), dtype=np.float16), None
        for piece in self._pieces(rows, size):
            if waiting is not None and len(waiting) + len(piece) > size:
                yield waiting
                waiting = None
            if waiting is None:
                waiting = piece
                continue
            start, end = len(waiting), len(waiting) + len(piece)
            if not len(buffer):
                buffer = np.empty((min(size, len(rows)), piece.shape[1]), dtype=np.float16)
            if waiting.base is not buffer:
                buffer[:start] = waiting
            buffer[start:end] = piece
            waiting = buffer[:end]
        if waiting is not None:
            yield waiting

    def _pieces(self, rows: Rows, size: int) -> Iterator[Vectors]:
        start, wanted = 0, []
        for file in self.files:
            mine = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + file.rows)] - start
            start += file.rows
            if len(mine):
                wanted.append((file, mine))
        with ThreadPoolExecutor(1) as ahead:
            # The next file is read and hashed while this one's vectors are used.
            coming = [ahead.submit(self._vectors, file) for file, _ in wanted[:1]]
            for number, (_, mine) in enumerate(wanted):
                coming += [ahead.submit(self._vectors, file) for file, _ in wanted[number + 1 : number + 2]]
                vectors = coming.pop(0).result()
                for first in range(0, len(mine), size):
                    some = mine[first : first + size]
                    # Rows that stand together are a view and no copy.
                    together = some[-1] - some[0] + 1 == len(some)
                    yield vectors[some[0] : some[-1] + 1] if together else vectors[some]

    def take(self, rows: Rows) -> Vectors:
        """(n, d) vectors of rows in any order."""
        once, places = np.unique(rows, return_inverse=True)
        return np.concatenate(list(self.blocks(once, max(1, len(once)))))[places]

    def _vectors(self, file: FileRows) -> Vectors:
        if file.name not in self._open:
            vectors = vectors_in(read_table(self.artefact, file.name))
            assert len(vectors) == file.rows, f"{file.name} does not have the rows of the corpus"
            self._open[file.name] = vectors
        return self._open[file.name]


@functools.lru_cache(maxsize=2)
def open_embeddings(store: str, version: str, files: tuple[FileRows, ...]) -> EmbeddingRows:
    """Embeddings of a store, by row; a process that does several pieces of a job hashes each file once."""
    return EmbeddingRows(Store(store).artefact("embeddings", version), files)


def vectors_in(table: pa.Table) -> Vectors:
    """(n, d) vectors of the table of one file, a view where it is memory-mapped."""
    column = table["embedding"]
    # Arrow copies even a single chunk that is to be combined.
    column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    dim = table.schema.field("embedding").type.list_size
    values: npt.NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
    return values.astype(np.float16, copy=False).reshape(-1, dim)


def read_table(artefact: Artefact, name: str) -> pa.Table:
    """Ids and embeddings of one file, memory-mapped."""
    return pa.ipc.open_file(pa.memory_map(str(artefact.on_disk(name)))).read_all()


def reusable(artefact: Artefact, name: str, image_ids: pa.Array) -> FileEntry | bytes | None:
    """What an earlier version has of a file: an entry that refers to all of it, the bytes of a part, or nothing.

    Args:
        artefact: of kind embeddings, by the same encoder.
        name: of the file.
        image_ids: that the file has to have, in order.
    """
    if name not in artefact.names(FOLDER):
        return None
    table = read_table(artefact, name)
    there = table["image_id"].combine_chunks()
    if there.equals(image_ids):
        return artefact.shared(name)
    places = pc.index_in(image_ids, value_set=there)
    if places.null_count:
        return None
    return schemas.to_ipc(table.take(places).combine_chunks())


def embeddings_of(artefact: Artefact) -> npt.NDArray[np.float16]:
    """(rows, d) stored embeddings of the whole corpus."""
    tables = [schemas.from_ipc(data) for _, data in artefact.each("embeddings/")]
    vectors = [t["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False) for t in tables]
    dim = tables[0].schema.field("embedding").type.list_size
    return np.concatenate(vectors).astype(np.float16, copy=False).reshape(-1, dim)
