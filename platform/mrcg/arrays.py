"""Arrays made once and read at random: blocks of rows as ``.npy`` files in an attempt, memory-mapped."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mrcg.store import Store

BLOCK_BYTES = 32 * 2**20


class Rows(Protocol):
    """What training reads from: an array in memory or blocks on disk."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def __getitem__(self, rows: Any) -> npt.NDArray[Any]:
        """Some rows, by a slice or by numbers in any order."""
        ...


class MappedRows:
    """Rows of several ``.npy`` files behind one another; more than fits into memory."""

    def __init__(self, paths: Sequence[Path]) -> None:
        assert paths
        self._blocks = [np.load(path, mmap_mode="r") for path in paths]
        self._starts = np.cumsum([0, *(len(block) for block in self._blocks)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, rows: Any) -> npt.NDArray[Any]:
        """Some rows in the order asked for, copied into memory."""
        wanted = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)
        first = self._blocks[0]
        out = np.empty((len(wanted), *first.shape[1:]), dtype=first.dtype)
        places = np.searchsorted(self._starts, wanted, side="right") - 1
        for place in np.unique(places):
            here = np.flatnonzero(places == place)
            out[here] = self._blocks[place][wanted[here] - self._starts[place]]
        return out


def blocks_of(count: int, row_bytes: int, shares: int) -> list[range]:
    """Rows 0..count-1 cut into blocks of about ``BLOCK_BYTES``, and into at least as many as there are workers."""
    size = max(1, min(BLOCK_BYTES // max(1, row_bytes), -(-count // max(1, shares))))
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def make_block(store: Store, folder: str, block: range, make: Callable[[range], npt.NDArray[Any]]) -> None:
    """Write one block of a cached array, unless an earlier try wrote it."""
    if not store.exists(name := _name(folder, block)):
        sink = io.BytesIO()
        np.save(sink, make(block))
        store.write_bytes(name, sink.getvalue())


def map_blocks(store: Store, folder: str, blocks: Sequence[range], scratch: Path) -> MappedRows:
    """The blocks as one array. Those of a remote store are fetched to ``scratch`` first."""
    paths = []
    for block in blocks:
        name = _name(folder, block)
        path = Path(store.path(name))
        if not store.local:
            path = scratch / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(store.read_bytes(name))
        paths.append(path)
    return MappedRows(paths)


def _name(folder: str, block: range) -> str:
    # Start and end are in the name: blocks that another number of workers would cut are other files.
    return f"{folder}/{block.start:09d}-{block.stop:09d}.npy"
