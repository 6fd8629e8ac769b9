"""Run a function in a process of its own; know its seconds, and the most memory that it held for itself."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")
SAMPLE_SECONDS = 0.01


@dataclass(frozen=True)
class Measured(Generic[Result]):
    """What a function returned, seconds without the start of its process, and peak bytes of private memory."""

    result: Result
    seconds: float
    peak_bytes: int


def private_bytes(pid: int) -> int:
    """Memory that a process holds for itself: no pages of files, which the system may drop."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def _child(pipe: Connection, work: Callable[..., Any], words: tuple[Any, ...]) -> None:
    start = time.perf_counter()
    result = work(*words)
    pipe.send((result, time.perf_counter() - start))
    pipe.close()


def measured(work: Callable[..., Result], *words: Any) -> Measured[Result]:
    """Call a function of a module with words that cross processes."""
    context = multiprocessing.get_context("spawn")
    mine, other = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(other, work, words))
    process.start()
    other.close()
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_SECONDS):
            try:
                peak[0] = max(peak[0], private_bytes(process.pid or 0))
            except OSError:  # it has just ended
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result, seconds = mine.recv()
    except EOFError as error:
        process.join()
        raise RuntimeError(f"{work.__name__}{words} ended with {process.exitcode}") from error
    finally:
        done.set()
        watcher.join()
    process.join()
    return Measured(result, seconds, peak[0])
