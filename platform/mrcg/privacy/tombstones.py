"""Tombstones: erased images, which must not be shown again (`docs/index.md#filters-and-tombstones`).

They are kept in an append-only log below ``log/tombstones``, which running services poll. An entry is a hash of an
image id, so the log does not contain the ids that it forbids.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence

from mrcg.storage.append_log import AppendLog
from mrcg.storage.store import Store

FOLDER = "log/tombstones"
#: Shortest interval in seconds between two listings of the log; listing an object store is not free.
REFRESH_SECONDS = 0.5


def entry_of(image_id: str) -> str:
    """Return the entry that forbids an image."""
    return hashlib.blake2b(f"tombstone\x1f{image_id}".encode(), digest_size=16).hexdigest()


def tombstone(store: Store, entries: Iterable[str]) -> None:
    """Forbid images by their entries (see `entry_of`). Entries are never removed."""
    AppendLog(store, FOLDER).add(entries)


class Tombstones:
    """The entries of the log, read as it grows; each file of it is read once.

    Attributes:
        entries: all entries that were read so far.
    """

    def __init__(self, store: Store, refresh_seconds: float = REFRESH_SECONDS) -> None:
        self._log = AppendLog(store, FOLDER)
        self._refresh_seconds = refresh_seconds
        self._last_refresh = float("-inf")
        self._files_read: set[str] = set()
        self.entries: set[str] = set()

    def refresh(self) -> list[str]:
        """Read the new files of the log and return their entries.

        The log is listed at most every ``refresh_seconds``; calls in between return nothing.

        Raises:
            StoreError: the log cannot be read; every further call fails until it can.
        """
        if time.monotonic() - self._last_refresh < self._refresh_seconds:
            return []
        new_files = self._log.unread(self._files_read)
        new_entries = [entry for added in new_files.values() for entry in added]
        # All or nothing: if a file cannot be read, the next call returns the entries of all new files.
        self._files_read.update(new_files)
        self.entries.update(new_entries)
        # Set only after success: while the log cannot be read, every call fails, so that no search is answered from an
        # outdated log.
        self._last_refresh = time.monotonic()
        return new_entries

    def forbidden(self, image_ids: Sequence[str]) -> list[str]:
        """Return the ids, in the given order, of images that must not be shown."""
        if not self.entries:
            return []
        return [image_id for image_id in image_ids if entry_of(image_id) in self.entries]
