"""Cached arrays for random access: blocks of rows, written once as ``.npy`` files and memory-mapped."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    """The concatenation of several memory-mapped arrays, which may be larger than memory.

    Args:
        blocks: the arrays; at least one.
        lengths: rows of each array, if ``blocks`` opens an array only when it is asked for.
    """

    def __init__(self, blocks: Sequence[ArrayRows], lengths: Sequence[int] | None = None) -> None:
        lengths = [len(block) for block in blocks] if lengths is None else lengths
        assert lengths
        self._blocks = blocks
        self._starts = np.cumsum([0, *lengths])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, rows: Any) -> npt.NDArray[Any]:
        """Return the rows in the given order, copied into memory."""
        numbers = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)
        block_numbers = np.searchsorted(self._starts, numbers, side="right") - 1
        out: npt.NDArray[Any] | None = None
        for block in np.unique(block_numbers).tolist() or [0]:
            positions = np.flatnonzero(block_numbers == block)
            part = self._blocks[block][numbers[positions] - self._starts[block]]
            if out is None:
                out = np.empty((len(numbers), *part.shape[1:]), dtype=part.dtype)
            out[positions] = part
        assert out is not None
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


@dataclass(frozen=True)
class FeatureRows:
    """Trunk features of the images of a file.

    Attributes:
        ids: of the images.
        rows_nf: (n, f) their features.
    """

    ids: Sequence[str]
    rows_nf: MappedRows


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
    # Leaving the `with` block deletes the name of a temporary file; the bytes stay until the last mapping is closed. So
    # a killed worker leaves no file behind.
    with store.local_path(name) as path:
        mapped: npt.NDArray[Any] = np.load(path, mmap_mode="r")
        return mapped


def _name(folder: str, block: range) -> str:
    # Start and end are in the name because another number of workers may split the rows differently.
    return f"{folder}/{block.start:09d}-{block.stop:09d}.npy"
