"""One part of a shard as it lies on disk: which scan each row is, and the exact fp16 vectors (DESIGN §2)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mrcg.index import faiss_backend
from mrcg.index.distances import Mask, Rows
from mrcg.index.faiss_backend import Faiss
from mrcg.index.layout import PartFacts, Shape, part_files

OnDisk = Callable[[str], Path]
#: Gives a part's FAISS index, memory-mapped or not.
Load = Callable[[bool], Faiss]


class Part:
    """One part of a shard.

    Args:
        load: gives its FAISS index over all rows, those that are gone too; kind flat has none.
        vectors_nd: (n, d) fp16.
        rows: table of ``schemas.ROWS`` in this order; all null where a row is gone.
    """

    def __init__(self, load: Load | None, vectors_nd: npt.NDArray[np.float16], rows: pa.Table) -> None:
        assert len(vectors_nd) == rows.num_rows
        self.load = load
        self.vectors_nd = vectors_nd
        self.table = rows
        self.rows: Rows = rows["row"].fill_null(-1).to_numpy()
        self.live: Mask = self.rows >= 0

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def open(cls, on_disk: OnDisk, shape: Shape, facts: PartFacts) -> Part:
        """Open a part.

        Args:
            on_disk: gives the path of a file of the index, its bytes checked: ``Artefact.on_disk``.
            shape: of the index.
            facts: of the part.

        Raises:
            IntegrityError: a file is not the one that was published.
        """
        files = part_files(facts.name)
        rows = pa.ipc.open_file(pa.memory_map(str(on_disk(files.rows)))).read_all()
        vectors = map_vectors(on_disk(files.vectors), facts.rows, shape.dim)
        load = None if shape.kind == "flat" else partial(faiss_backend.read_index, on_disk(files.index))
        return cls(load, vectors, rows)


def map_vectors(path: Path, count: int, dim: int) -> npt.NDArray[np.float16]:
    """(n, d) exact vectors of a part, memory-mapped."""
    if not count:
        return np.empty((0, dim), dtype=np.float16)
    # A plain array over the map: indexing a memmap itself costs more than what is read.
    return np.asarray(np.memmap(path, dtype=np.float16, mode="r", shape=(count, dim)))
