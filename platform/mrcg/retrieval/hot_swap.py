"""Load new releases while requests are served, and evict unused ones.

A stage loads what it needs of a new release beside the current one, and each request names the release that it uses. So
releases change without failed requests, and a release that cannot be loaded is never used
(docs/architecture.md#how-a-release-is-loaded-pinned-and-dropped).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from mrcg.errors import (
    IntegrityError,
    MrcgError,
    NotFoundError,
    ReleaseError,
    ReleaseNotLoadedError,
    StoreError,
    WeightsError,
)
from mrcg.releases.release import Release, read_release, release_numbers
from mrcg.storage.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")
#: Maximum number of releases in memory, including one that is being loaded.
MAX_RELEASES = 2
#: Number of releases tried at startup, newest first, until one can be loaded.
MAX_START_TRIES = 3
#: What loading a bad release raises; a retry would not help.
_LOAD_ERRORS = (IntegrityError, NotFoundError, WeightsError, ReleaseError, MemoryError, RuntimeError, ValueError)


@dataclass
class _Entry(Generic[T]):
    key: str
    loaded: T
    last_used: float  # time.monotonic(), 0 before the first use


class ReleaseCache(Generic[T]):
    """What one stage has loaded of each release that it can answer from. Thread-safe.

    Args:
        key: names what the stage needs of a release; releases with the same key are loaded once and share it.
        load: loads it.
        grace_s: seconds a release stays loaded after its last use, once a newer one is in use.
    """

    def __init__(self, key: Callable[[Release], str], load: Callable[[Release], T], grace_s: float) -> None:
        self._key, self._load, self._grace_s = key, load, grace_s
        self._entries: dict[int, _Entry[T]] = {}
        self._lock = threading.Lock()
        self._load_lock = threading.Lock()

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the loaded releases in ascending order."""
        with self._lock:
            return tuple(sorted(self._entries))

    def get(self, number: int) -> T:
        """Return what is loaded of a release, and mark the release as used.

        Raises:
            ReleaseNotLoadedError: the release is not loaded.
        """
        with self._lock:
            if (entry := self._entries.get(number)) is None:
                numbers = ", ".join(map(str, sorted(self._entries))) or "none"
                raise ReleaseNotLoadedError(f"release {number} is not loaded here (loaded: {numbers})")
            entry.last_used = time.monotonic()
            return entry.loaded

    def peek(self, number: int) -> T | None:
        """Return what is loaded of a release, or None, without marking the release as used."""
        with self._lock:
            entry = self._entries.get(number)
            return None if entry is None else entry.loaded

    def prepare(self, release: Release) -> None:
        """Load a release beside the one used last, unless it is loaded. If loading raises, that one stays loaded."""
        with self._load_lock:
            key = self._key(release)
            with self._lock:
                if release.number in self._entries:
                    return
                same = next((entry for entry in self._entries.values() if entry.key == key), None)
                # Evict before loading, so that three releases are never in memory at once; least recently used first.
                while len(self._entries) >= MAX_RELEASES:
                    del self._entries[min(self._entries, key=lambda number: self._entries[number].last_used)]
            loaded = self._load(release) if same is None else same.loaded
            with self._lock:
                self._entries[release.number] = _Entry(key, loaded, 0.0)

    def evict_unused(self, now: float | None = None) -> None:
        """Evict releases older than the newest one in use that were not used for ``grace_s``, or never."""
        now = time.monotonic() if now is None else now
        with self._lock:
            newest_used = max((number for number, entry in self._entries.items() if entry.last_used), default=0)
            for number in [number for number in self._entries if number < newest_used]:
                if now - self._entries[number].last_used > self._grace_s:
                    del self._entries[number]


class ReleaseWatcher(Generic[T]):
    """Loads each newly promoted release into a cache, or only the release that it is told to follow.

    A release that cannot be loaded is rejected and logged once, and the previous release keeps serving. If the store
    cannot be read, the watcher retries.

    Attributes:
        cache: the loaded releases.
        rejected: why releases were rejected, by number.
    """

    def __init__(self, store: Store, cache: ReleaseCache[T]) -> None:
        self.cache = cache
        self.rejected: dict[int, str] = {}
        self._store = store
        self._followed: int | None = None
        self._stopped = threading.Event()

    def start(self, number: int | None) -> None:
        """Load the given release or, if the number is None, the newest one that can be loaded.

        Raises:
            MrcgError: none of the releases tried can be loaded; the error of the first one.
        """
        self._followed = number
        numbers = [number] if number is not None else release_numbers(self._store)[::-1][:MAX_START_TRIES]
        if not numbers:
            read_release(self._store)  # raises: the store has no release
        first_error: MrcgError | None = None
        for candidate in numbers:
            try:
                return self._load(candidate)
            except MrcgError as error:
                log.error("release %d cannot be loaded: %s", candidate, error)
                self.rejected[candidate] = str(error)
                first_error = first_error or error
        assert first_error is not None
        raise first_error

    def follow(self, number: int | None) -> None:
        """Follow the given release from now on, or the newest one if the number is None; the next step loads it."""
        if number is not None:
            self.rejected.pop(number, None)  # it may have been repaired
        self._followed = number

    @property
    def target(self) -> int:
        """Number of the release to serve: the followed one or the newest; 0 if the store has none."""
        return self._followed if self._followed is not None else max(release_numbers(self._store), default=0)

    def step(self) -> None:
        """Check for a new release once, load it, and evict unused releases. Failures to load are logged."""
        number = 0
        try:
            number = self.target
            if number and number not in self.cache.numbers and number not in self.rejected:
                self._load(number)
        except _LOAD_ERRORS as error:
            self._reject(number, error)
        except (StoreError, OSError):
            log.warning("cannot check the store for new releases; retrying", exc_info=True)
        self.cache.evict_unused()

    def _load(self, number: int) -> None:
        self.cache.prepare(read_release(self._store, number))

    def _reject(self, number: int, error: Exception) -> None:
        self.rejected[number] = str(error) or type(error).__name__
        log.error("release %d is rejected, the previous release keeps serving: %s", number, self.rejected[number])

    def run(self, interval_s: float) -> None:
        """Step every ``interval_s`` seconds in a background thread until ``stop``."""
        threading.Thread(target=self._run, args=(interval_s,), name="releases", daemon=True).start()

    def _run(self, interval_s: float) -> None:
        while not self._stopped.wait(interval_s):
            self.step()

    def stop(self) -> None:
        """Stop the background thread after its current step."""
        self._stopped.set()
