"""One part of a shard on disk: its FAISS index, the scan of each row, and the exact fp16 vectors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mrcg.arrays import Mask, RowNumbers
from mrcg.index import faiss_backend
from mrcg.index.faiss_backend import Faiss
from mrcg.index.layout import PartFacts, Shape, part_files

OnDisk = Callable[[str], Path]
#: Reads a part's FAISS index; the argument says whether it is memory-mapped.
Load = Callable[[bool], Faiss]


class Part:
    """One part of a shard.

    Args:
        load: reads its FAISS index, which has all rows, deleted ones too; None for kind flat.
        vectors_nd: (n, d) fp16 vectors.
        rows: table of ``schemas.ROWS`` in the same order; all null where a row is deleted.

    Attributes:
        rows: (n,) gallery rows, -1 where deleted.
        live: (n,) mask of the rows that are not deleted.
    """

    def __init__(self, load: Load | None, vectors_nd: npt.NDArray[np.float16], rows: pa.Table) -> None:
        assert len(vectors_nd) == rows.num_rows
        self.load = load
        self.vectors_nd = vectors_nd
        self.table = rows
        self.rows: RowNumbers = rows["row"].fill_null(-1).to_numpy()
        self.live: Mask = self.rows >= 0

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def open(cls, on_disk: OnDisk, shape: Shape, facts: PartFacts) -> Part:
        """Open a part.

        Args:
            on_disk: returns the local path of a file of the index after checking its hash: ``Artefact.on_disk``.
            shape: of the index.
            facts: of the part.

        Raises:
            IntegrityError: a file does not match its manifest.
        """
        files = part_files(facts.name)
        rows = pa.ipc.open_file(pa.memory_map(str(on_disk(files.rows)))).read_all()
        vectors = map_vectors(on_disk(files.vectors), facts.rows, shape.dim)
        load = None if shape.kind == "flat" else partial(faiss_backend.read_index, on_disk(files.index))
        return cls(load, vectors, rows)


def map_vectors(path: Path, count: int, dim: int) -> npt.NDArray[np.float16]:
    """Return the (n, d) exact vectors of a part, memory-mapped."""
    if not count:
        return np.empty((0, dim), dtype=np.float16)
    # A plain array over the map: indexing a memmap object costs more than the reads.
    return np.asarray(np.memmap(path, dtype=np.float16, mode="r", shape=(count, dim)))
