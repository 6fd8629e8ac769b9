"""Progress of a stage. Ray is not imported here: the commands show progress without it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told how far a stage is."""

    def __call__(self, done: float, total: float, note: str = "") -> None:
        """``done`` of ``total`` units; a short note beside it."""
        ...


def silent(done: float, total: float, note: str = "") -> None:
    """Shows nothing."""
