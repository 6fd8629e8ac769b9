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

from mrcg.errors import IntegrityError, MrcgError, NotFoundError, ReleaseError, StoreError, WeightsError
from mrcg.releases.release import Release, read_release, release_numbers
from mrcg.storage.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")
#: Releases that are here at once, the one that is being loaded counted.
MOST = 2
#: Releases that are tried at the start, from the newest on, until one can be loaded.
TRIED = 3
#: What a release that cannot be loaded raises; trying again would not help.
_BAD = (IntegrityError, NotFoundError, WeightsError, ReleaseError, MemoryError, RuntimeError, ValueError)


class ReleaseNotLoadedError(MrcgError):
    """This process cannot answer under that release (yet, or any more): another may."""


@dataclass
class _Held(Generic[T]):
    key: str
    loaded: T
    used: float


class ReleaseCache(Generic[T]):
    """What is loaded of each release that can be answered under.

    Args:
        key: names what a stage needs of a release; where two releases need the same it is loaded once.
        load: loads it.
        grace_s: how long a release stays after it was asked for last, once there is a newer one.
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
            ReleaseNotLoadedError: it is not here.
        """
        with self._lock:
            if (held := self._held.get(number)) is None:
                here = ", ".join(map(str, sorted(self._held))) or "none"
                raise ReleaseNotLoadedError(f"release {number} is not loaded here (here: {here})")
            held.used = time.monotonic()
            return held.loaded

    def peek(self, number: int) -> T | None:
        """The same without asking for it: it does not keep the release here."""
        with self._lock:
            held = self._held.get(number)
            return None if held is None else held.loaded

    def prepare(self, release: Release) -> None:
        """Take a release on beside the one that was asked for last; what loading raises is raised, that one stays."""
        with self._preparing:
            key = self._key(release)
            with self._lock:
                if release.number in self._held:
                    return
                same = next((one for one in self._held.values() if one.key == key), None)
                # Never three at once, not even while loading; what nobody asks for goes first.
                while len(self._held) >= MOST:
                    del self._held[min(self._held, key=lambda number: self._held[number].used)]
            loaded = self._load(release) if same is None else same.loaded
            with self._lock:
                self._held[release.number] = _Held(key, loaded, 0.0)

    def sweep(self, now: float | None = None) -> None:
        """Let go what was not asked for during the time of grace, as soon as a newer one has been asked for."""
        now = time.monotonic() if now is None else now
        with self._lock:
            asked = [number for number, one in self._held.items() if one.used]
            for number in [number for number in self._held if number < max(asked, default=0)]:
                if now - self._held[number].used > self._grace:
                    del self._held[number]


class ReleaseWatcher(Generic[T]):
    """ReleaseCache that take every release on that is promoted, or those that somebody names.

    A release that cannot be loaded is refused, once and aloud, and the one before goes on answering; where the store
    cannot be read now, it is tried again.
    """

    def __init__(self, store: Store, residents: ReleaseCache[T]) -> None:
        self.residents = residents
        #: Why releases were refused.
        self.refused: dict[int, str] = {}
        self._store = store
        self._named: int | None = None
        self._stopped = threading.Event()

    def start(self, named: int | None) -> None:
        """Load the release that is named, or else the newest that can be loaded.

        Raises:
            MrcgError: none can be: why the first of them could not.
        """
        self._named = named
        numbers = [named] if named is not None else release_numbers(self._store)[::-1][:TRIED]
        if not numbers:
            read_release(self._store)  # says that there is none
        first: MrcgError | None = None
        for number in numbers:
            try:
                return self._take(number)
            except MrcgError as error:
                log.error("release %d cannot be loaded: %s", number, error)
                self.refused[number] = str(error)
                first = first or error
        assert first is not None
        raise first

    def follow(self, named: int | None) -> None:
        """Take the named release on from now on, or the newest where none is; it is loaded with the next step."""
        if named is not None:
            self.refused.pop(named, None)  # somebody may have mended it
        self._named = named

    @property
    def wanted(self) -> int:
        """The release that should be answered under."""
        return self._named if self._named is not None else max(release_numbers(self._store), default=0)

    def step(self) -> None:
        """Look once; what went wrong is in the log."""
        number = 0
        try:
            number = self.wanted
            if number and number not in self.residents.numbers and number not in self.refused:
                self._take(number)
        except _BAD as error:
            self._refuse(number, error)
        except (StoreError, OSError):
            log.warning("the releases cannot be looked at now", exc_info=True)
        self.residents.sweep()

    def _take(self, number: int) -> None:
        self.residents.prepare(read_release(self._store, number))

    def _refuse(self, number: int, error: Exception) -> None:
        self.refused[number] = str(error) or type(error).__name__
        log.error("release %d is refused, the one before goes on answering: %s", number, self.refused[number])

    def run(self, every_s: float) -> None:
        """Step again and again, in a thread of its own, until ``stop``."""
        threading.Thread(target=self._run, args=(every_s,), name="releases", daemon=True).start()

    def _run(self, every_s: float) -> None:
        while not self._stopped.wait(every_s):
            self.step()

    def stop(self) -> None:
        """End ``run``."""
        self._stopped.set()
