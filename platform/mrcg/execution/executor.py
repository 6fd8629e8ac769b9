"""Many hands: work in equal pieces, done here one after the other, or on a cluster at once.

The library says what the pieces are and what each needs; the shell says who does them. So the same build runs in a
notebook, in a test and on Ray.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import pyarrow as pa

Item = TypeVar("Item")
Result = TypeVar("Result")


class Progress(Protocol):
    """Told how far a stage is."""

    def __call__(self, done: float, total: float, note: str = "") -> None:
        """``done`` of ``total`` units; a short note beside it."""
        ...


def silent(done: float, total: float, note: str = "") -> None:
    """Shows nothing."""


class Executor(Protocol):
    """Does pieces of work."""

    def map(
        self, work: Callable[[Item], Result], items: Sequence[Item], bytes_each: int = 0, gpus_each: int = 0
    ) -> Iterator[Result]:
        """The results in the order of the items, each as soon as it and those before it are there.

        Args:
            work: a function of a module, or a frozen dataclass that can be called: it may go to another machine.
            items: of the pieces.
            bytes_each: memory that one piece needs; what does not fit at once waits.
            gpus_each: GPUs that one piece needs.
        """
        ...


class LocalExecutor:
    """Does the pieces in this process, one after the other."""

    def map(
        self, work: Callable[[Item], Result], items: Sequence[Item], bytes_each: int = 0, gpus_each: int = 0
    ) -> Iterator[Result]:
        """The results in order."""
        for item in items:
            result = work(item)
            release_memory()
            yield result


def release_memory() -> None:
    """Return memory that a piece no longer needs to the system: the next piece may be another process'.

    The allocators keep it otherwise: after a part with its thousands of inverted lists, as much as the part was large.
    """
    pa.default_memory_pool().release_unused()
    if trim := _trim():
        trim(0)


@functools.cache
def _trim() -> Callable[[int], object] | None:
    """``malloc_trim``; None where the C library has none (only glibc does)."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
