"""Releases that a process can answer under: one, and two while the next is taken on (DESIGN §4).

A stage loads what it needs of a new release beside what it has; requests name the release that they are answered under.
What is no longer asked for goes. So releases change with no request failing, and a bad one never comes in.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from mrcg.errors import MrcgError
from mrcg.release import Release, read_release, release_numbers
from mrcg.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")
MOST = 2


class NotResidentError(MrcgError):
    """This process cannot answer under that release (yet, or any more): another may."""


@dataclass
class _Held(Generic[T]):
    key: str
    loaded: T
    used: float | None = None


class Residents(Generic[T]):
    """What is loaded of each release that can be answered under.

    Args:
        key: names what a stage needs of a release; where two releases need the same it is loaded once.
        load: loads it.
        grace_s: how long a release stays after it was asked for last, once a newer one is asked for.
    """

    def __init__(self, key: Callable[[Release], str], load: Callable[[Release], T], grace_s: float) -> None:
        self._key, self._load, self._grace = key, load, grace_s
        self._held: dict[int, _Held[T]] = {}
        self._lock = threading.Lock()
        self._preparing = threading.Lock()

    @property
    def numbers(self) -> tuple[int, ...]:
        """Releases that are here, rising."""
        with self._lock:
            return tuple(sorted(self._held))

    def of(self, number: int) -> T:
        """What is loaded of a release.

        Raises:
            NotResidentError: it is not here.
        """
        with self._lock:
            if (held := self._held.get(number)) is None:
                here = ", ".join(map(str, sorted(self._held)))
                raise NotResidentError(f"release {number} is not loaded here: {here} are")
            held.used = time.monotonic()
            return held.loaded

    def prepare(self, release: Release) -> None:
        """Take a release on, beside the newest that is here; what loading raises is raised, and that one stays."""
        with self._preparing:
            key = self._key(release)
            with self._lock:
                if release.number in self._held:
                    return
                same = next((one for one in self._held.values() if one.key == key), None)
                # Never three at once, not even while loading.
                for number in sorted(self._held)[: -(MOST - 1)]:
                    if same is None:
                        del self._held[number]
            loaded = self._load(release) if same is None else same.loaded
            with self._lock:
                self._held[release.number] = _Held(key, loaded)
                for number in sorted(self._held)[:-MOST]:
                    del self._held[number]

    def sweep(self, now: float | None = None) -> None:
        """Let a release go that was not asked for during the time of grace, where a newer one was asked for."""
        now = time.monotonic() if now is None else now
        with self._lock:
            newest = max(self._held, default=0)
            if self._held and self._held[newest].used is not None:
                idle = [number for number, one in self._held.items() if now - (one.used or 0.0) > self._grace]
                for number in idle:
                    if number != newest:
                        del self._held[number]


class Follower:
    """Takes every release on that is promoted. One that cannot be loaded is refused, once and aloud."""

    def __init__(self, store: Store, residents: Residents[T]) -> None:
        self._store, self._residents = store, residents
        #: Why releases were refused.
        self.refused: dict[int, str] = {}

    def step(self) -> None:
        """Look once."""
        number = max(release_numbers(self._store), default=0)
        if number and number not in self._residents.numbers and number not in self.refused:
            try:
                self._residents.prepare(read_release(self._store, number))
            except (MrcgError, OSError, MemoryError) as error:
                self.refused[number] = str(error) or type(error).__name__
                log.exception("release %d is refused, the one before goes on answering", number)
        self._residents.sweep()

    def follow(self, stop: threading.Event, every_s: float) -> None:
        """Look again and again until told to stop; a store that cannot be read now is looked at later."""
        while not stop.wait(every_s):
            try:
                self.step()
            except MrcgError:
                log.warning("the releases cannot be looked at", exc_info=True)
