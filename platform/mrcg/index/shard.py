"""One part of a shard: FAISS's candidates, the exact fp16 vectors beside them, and which scan each row is.

FAISS only finds candidates. What is answered is ordered by distances computed again from the fp16 vectors, always by
the same arithmetic: so an answer does not depend on the batch, on the number of shards or on the kind of index.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mrcg.index import kinds
from mrcg.index.kinds import Faiss, Prepared
from mrcg.index.layout import PartFacts, Shape, part_files
from mrcg.index.metric import BLOCK, Distances, Mask, Rows

OnDisk = Callable[[str], Path]


class Part:
    """Rows of one shard, ready to be searched.

    Args:
        shape: of the index.
        index: filled FAISS index over all rows, those that are gone too.
        vectors_nd: (n, d) fp16.
        rows: table of ``schemas.ROWS`` in this order; all null where a row is gone.
    """

    def __init__(self, shape: Shape, index: Faiss, vectors_nd: npt.NDArray[np.float16], rows: pa.Table) -> None:
        assert index.ntotal == len(vectors_nd) == rows.num_rows
        self.shape = shape
        self.index = index
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
        if shape.kind != "flat":
            return cls(shape, kinds.read_index(on_disk(files.index)), vectors, rows)
        index = kinds.flat_index(shape.dim)
        for start in range(0, len(vectors), BLOCK):
            index.add(vectors[start : start + BLOCK].astype(np.float32))
        return cls(shape, index, vectors, rows)

    def allowed(self, allowed: Mask | None) -> Mask | None:
        """(n,) of this part's rows those that are there and allowed; None where that is all."""
        if allowed is None:
            return None if self.live.all() else self.live
        return self.live & allowed[self.rows]

    def candidates(self, prepared: Prepared, count: int, allowed: Mask | None, effort: int) -> tuple[Distances, Rows]:
        """(q, count) distances by FAISS and local rows, -1 where it found fewer; ``allowed`` is over local rows."""
        if not len(self):
            shape = (len(prepared.queries_qd), count)
            return np.full(shape, np.inf, dtype=np.float32), np.full(shape, -1, dtype=np.int64)
        distances, rows = kinds.candidates(self.index, self.shape, prepared, count, allowed, effort)
        assert allowed is None or allowed[rows[rows >= 0]].all(), "a search returned a row that is not allowed"
        return distances, rows


def map_vectors(path: Path, count: int, dim: int) -> npt.NDArray[np.float16]:
    """(n, d) exact vectors of a part, memory-mapped."""
    if not count:
        return np.empty((0, dim), dtype=np.float16)
    return np.memmap(path, dtype=np.float16, mode="r", shape=(count, dim))
