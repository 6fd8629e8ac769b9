"""Progress of work in other processes: workers write it to an actor, a thread of the driver reads it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

import ray

from mrcg.execution.executor import Progress

POLL_SECONDS = 0.5


@ray.remote(num_cpus=0)
class Board:
    """Actor that holds the progress of a job: workers write it, the driver reads it."""

    def __init__(self) -> None:
        self._state: tuple[float, float, str] = (0.0, 0.0, "")
        self._parts: dict[int, float] = {}

    def write(self, done: float, total: float, note: str) -> None:
        """Replace the progress."""
        self._state = (done, total, note)

    def expect(self, before: float, total: float, note: str) -> None:
        """Start counting work that is done in parts: ``before`` of ``total`` units are done already."""
        self._parts = {-1: before}
        self._state = (before, total, note)

    def part(self, number: int, done: float) -> None:
        """Set how many units of one part are done; a part that is retried starts from 0."""
        self._parts[number] = done
        self._state = (sum(self._parts.values()), *self._state[1:])

    def read(self) -> tuple[float, float, str]:
        """Return the progress: units done, total and a note."""
        return self._state


class Watch:
    """Context manager that passes the progress on a board to ``progress``."""

    def __init__(self, progress: Progress) -> None:
        self.board = Board.remote()  # type: ignore[attr-defined]
        self._progress = progress
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="progress", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        ray.kill(self.board)

    def _poll(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            done, total, note = ray.get(self.board.read.remote())
            if total:
                self._progress(done, total, note)


def reporter(board: ray.actor.ActorHandle | None) -> Callable[[float, float, str], None]:
    """Return a function for a worker that writes its progress to the board; without a board it does nothing."""
    if board is None:
        return lambda done, total, note: None
    return lambda done, total, note: board.write.remote(done, total, note)


def part_reporter(board: ray.actor.ActorHandle, number: int) -> Callable[[float], None]:
    """Return a function for a worker that writes how many units of its part are done.

    It writes at most once per ``POLL_SECONDS``, because each call costs time on both sides.
    """
    last = 0.0

    def report(done: float) -> None:
        nonlocal last
        if time.monotonic() - last >= POLL_SECONDS:
            last = time.monotonic()
            board.part.remote(number, done)

    return report
