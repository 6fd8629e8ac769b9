"""The parts of an index as they lie on disk: which scan each row is, and the exact fp16 vectors (DESIGN §2)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mrcg.errors import require
from mrcg.index import kinds
from mrcg.index.kinds import Faiss
from mrcg.index.layout import PartFacts, Shape, part_files
from mrcg.index.metric import Mask, Rows

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
        load = None if shape.kind == "flat" else partial(kinds.read_index, on_disk(files.index))
        return cls(load, vectors, rows)


def map_vectors(path: Path, count: int, dim: int) -> npt.NDArray[np.float16]:
    """(n, d) exact vectors of a part, memory-mapped."""
    if not count:
        return np.empty((0, dim), dtype=np.float16)
    # A plain array over the map: indexing a memmap itself costs more than what is read.
    return np.asarray(np.memmap(path, dtype=np.float16, mode="r", shape=(count, dim)))


class _Buffers(threading.local):
    """Memory that a thread uses again: what is allocated anew for each search costs more than what is done in it."""

    def __init__(self) -> None:
        self.halves = np.empty((0, 0), dtype=np.float16)
        self.floats = np.empty((0, 0), dtype=np.float32)


class Stored:
    """The exact vectors of all parts, by place: the order of the rows that are there.

    Args:
        parts: of the index.
        dim: of a vector.
    """

    def __init__(self, parts: Sequence[Part], dim: int) -> None:
        self._parts = parts
        self.dim = dim
        rows = np.concatenate([np.empty(0, np.int64), *(part.rows for part in parts)])
        order = np.argsort(rows, kind="stable")
        order = order[np.searchsorted(rows[order], 0) :]
        #: (places,) gallery rows, rising.
        self.rows: Rows = rows[order]
        starts = np.cumsum([0, *(len(part) for part in parts)])
        self._owner = (np.searchsorted(starts, order, side="right") - 1).astype(np.int32)
        self._local = order - starts[self._owner]
        self._decoder = require("faiss").ScalarQuantizer(dim, require("faiss").ScalarQuantizer.QT_fp16)
        self._buffers = _Buffers()

    def __len__(self) -> int:
        return len(self.rows)

    def places_of(self, number: int) -> Rows:
        """(n,) place of each row of a part, -1 where it is gone."""
        places = np.full(len(self._parts[number]), -1, dtype=np.int64)
        here = np.flatnonzero(self._owner == number)
        places[self._local[here]] = here
        return places

    def halves(self, places: Rows, out: npt.NDArray[np.float16] | None = None) -> npt.NDArray[np.float16]:
        """(n, d) vectors of places."""
        if out is None:
            out = np.empty((len(places), self.dim), dtype=np.float16)
        owner, local = self._owner[places], self._local[places]
        if len(self._parts) == 1:
            np.take(self._parts[0].vectors_nd, local, axis=0, out=out, mode="clip")
            return out
        for number, part in enumerate(self._parts):
            here = np.flatnonzero(owner == number)
            if len(here):
                out[here] = part.vectors_nd[local[here]]
        return out

    def floats(self, places: Rows) -> npt.NDArray[np.float32]:
        """(n, d) vectors of places as float32; valid until this thread asks again."""
        count, buffers, pointer = len(places), self._buffers, require("faiss").swig_ptr
        if len(buffers.halves) < count:
            buffers.halves = np.empty((count, self.dim), dtype=np.float16)
            buffers.floats = np.empty((count, self.dim), dtype=np.float32)
        halves, floats = buffers.halves[:count], buffers.floats[:count]
        if count:
            codes = self.halves(places, halves).view(np.uint8)
            self._decoder.decode_c(pointer(codes), pointer(floats), count)
        return floats
