"""Arrays made once and read at random: blocks of rows as ``.npy`` files in an attempt, memory-mapped."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mrcg.storage.store import Store

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
    """Rows of several memory-mapped arrays behind one another; more than fits into memory."""

    def __init__(self, blocks: Sequence[npt.NDArray[Any]]) -> None:
        assert blocks
        self._blocks = blocks
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
    """Rows 0..count-1 cut into blocks of at most ``BLOCK_BYTES``; every worker gets one where there are rows enough."""
    size = max(1, min(BLOCK_BYTES // max(1, row_bytes), count // max(1, shares)))
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def make_block(store: Store, folder: str, block: range, make: Callable[[range], npt.NDArray[Any]]) -> None:
    """Write one block of a cached array, unless an earlier try wrote it."""
    if not store.exists(name := _name(folder, block)):
        sink = io.BytesIO()
        np.save(sink, make(block))
        store.write_bytes(name, sink.getvalue())


def map_blocks(store: Store, folder: str, blocks: Sequence[range]) -> MappedRows:
    """The blocks as one array. Those of a remote store are fetched into temporary files first."""
    return MappedRows([_map(store, _name(folder, block)) for block in blocks])


def _map(store: Store, name: str) -> npt.NDArray[Any]:
    if store.local:
        return _open(store.path(name))
    with tempfile.NamedTemporaryFile(prefix="mrcg-block-") as file:
        file.write(store.read_bytes(name))
        file.flush()
        # The name goes when the block ends, the bytes when nobody maps them: a killed worker leaves nothing behind.
        return _open(file.name)


def _open(path: str) -> npt.NDArray[Any]:
    mapped: npt.NDArray[Any] = np.load(path, mmap_mode="r")
    return mapped


def _name(folder: str, block: range) -> str:
    # Start and end are in the name: blocks that another number of workers would cut are other files.
    return f"{folder}/{block.start:09d}-{block.stop:09d}.npy"
