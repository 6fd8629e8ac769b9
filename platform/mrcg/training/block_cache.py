"""Cached arrays for random access: blocks of rows, written once as ``.npy`` files and memory-mapped."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mrcg.storage.store import Store

#: Maximum size of a block, unless a single row is larger.
BLOCK_BYTES = 32 * 2**20


class ArrayRows(Protocol):
    """Rows that training reads: an array in memory or memory-mapped blocks."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def __getitem__(self, rows: Any) -> npt.NDArray[Any]:
        """Return rows by slice, or by row numbers in any order."""
        ...


class MappedRows:
    """The concatenation of several memory-mapped arrays, which may be larger than memory."""

    def __init__(self, blocks: Sequence[npt.NDArray[Any]]) -> None:
        assert blocks
        self._blocks = blocks
        self._starts = np.cumsum([0, *(len(block) for block in self._blocks)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, rows: Any) -> npt.NDArray[Any]:
        """Return the rows in the given order, copied into memory."""
        numbers = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)
        first = self._blocks[0]
        out = np.empty((len(numbers), *first.shape[1:]), dtype=first.dtype)
        block_numbers = np.searchsorted(self._starts, numbers, side="right") - 1
        for block in np.unique(block_numbers):
            positions = np.flatnonzero(block_numbers == block)
            out[positions] = self._blocks[block][numbers[positions] - self._starts[block]]
        return out


class SelectedRows:
    """Some rows of another array, which stays where it is."""

    def __init__(self, rows: ArrayRows, numbers: npt.NDArray[np.int64]) -> None:
        self._rows, self._numbers = rows, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, rows: Any) -> npt.NDArray[Any]:
        """Return the rows in the given order."""
        return self._rows[self._numbers[rows]]


def blocks_of(count: int, row_bytes: int, shares: int) -> list[range]:
    """Split rows 0..count-1 into blocks of at most ``BLOCK_BYTES``, at least ``shares`` of them if rows suffice."""
    size = max(1, min(BLOCK_BYTES // max(1, row_bytes), count // max(1, shares)))
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def make_block(store: Store, folder: str, block: range, make: Callable[[range], npt.NDArray[Any]]) -> None:
    """Write one block of a cached array, unless it already exists."""
    if not store.exists(name := _name(folder, block)):
        sink = io.BytesIO()
        np.save(sink, make(block))
        store.write_bytes(name, sink.getvalue())


def map_blocks(store: Store, folder: str, blocks: Sequence[range]) -> MappedRows:
    """Return the blocks as one array. Blocks of a remote store are first downloaded to temporary files."""
    return MappedRows([_map(store, _name(folder, block)) for block in blocks])


def _map(store: Store, name: str) -> npt.NDArray[Any]:
    if store.local:
        return _open(store.path(name))
    with tempfile.NamedTemporaryFile(prefix="mrcg-block-") as file:
        file.write(store.read_bytes(name))
        file.flush()
        # Leaving the `with` block deletes the name; the bytes stay until the last mapping is closed. So a killed worker
        # leaves no file behind.
        return _open(file.name)


def _open(path: str) -> npt.NDArray[Any]:
    mapped: npt.NDArray[Any] = np.load(path, mmap_mode="r")
    return mapped


def _name(folder: str, block: range) -> str:
    # Start and end are in the name because another number of workers may split the rows differently.
    return f"{folder}/{block.start:09d}-{block.stop:09d}.npy"
