"""Executors: map a function over items, in this process or in parallel on a cluster.

The library defines the items and the resources that each needs; the caller chooses the executor. So the same build
runs in a notebook, in a test and on Ray.
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
    """A callback that receives the progress of a stage."""

    def __call__(self, done: float, total: float, note: str = "") -> None:
        """Report that ``done`` of ``total`` units are finished, with an optional short note."""
        ...


def silent(done: float, total: float, note: str = "") -> None:
    """Ignore progress: the callback that shows nothing."""


class Executor(Protocol):
    """Maps a function over items."""

    def map(
        self, work: Callable[[Item], Result], items: Sequence[Item], bytes_each: int = 0, gpus_each: int = 0
    ) -> Iterator[Result]:
        """Yield the results in the order of the items, each as soon as it and all earlier ones are ready.

        Args:
            work: a module-level function or a callable frozen dataclass. It must be picklable, because it may run on
                another machine.
            items: inputs, one per call of ``work``.
            bytes_each: memory in bytes that one item needs; items that do not fit at the same time wait.
            gpus_each: GPUs that one item needs.
        """
        ...


class LocalExecutor:
    """Runs the items one after the other in this process."""

    def map(
        self, work: Callable[[Item], Result], items: Sequence[Item], bytes_each: int = 0, gpus_each: int = 0
    ) -> Iterator[Result]:
        """Yield the results in order; each item is computed when its result is requested."""
        for item in items:
            result = work(item)
            release_memory()
            yield result


def release_memory() -> None:
    """Return the memory that a finished item has freed to the operating system, so that other processes can use it.

    Otherwise the allocators keep it: after one index part with its thousands of inverted lists, they hold as much
    memory as the part was large.
    """
    pa.default_memory_pool().release_unused()
    if trim := _trim():
        trim(0)


@functools.cache
def _trim() -> Callable[[int], object] | None:
    """Return ``malloc_trim`` of the C library; None if it has none (only glibc has it)."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
