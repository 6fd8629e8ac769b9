"""Tombstones: images that nobody may be shown any more, from the moment one is set (DESIGN §2, §5).

An append-only log below ``log/tombstones`` that running services look at again and again. An entry is a hash of an
image id, so the log does not keep what it forbids.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable, Sequence

from mrcg.errors import AlreadyExistsError
from mrcg.hashing import digest
from mrcg.storage.store import Store

FOLDER = "log/tombstones"
#: A service looks at most so often (seconds): a listing of an object store is not free.
LOOK_SECONDS = 0.5


def entry_of(image_id: str) -> str:
    """The entry that forbids an image."""
    return hashlib.blake2b(f"tombstone\x1f{image_id}".encode(), digest_size=16).hexdigest()


def tombstone(store: Store, entries: Iterable[str]) -> None:
    """Forbid images by their entries; what is forbidden stays so."""
    entries = sorted(set(entries))
    if entries:
        with contextlib.suppress(AlreadyExistsError):
            store.create(f"{FOLDER}/{digest(entries, 32)}.json", json.dumps(entries).encode())


class Tombstones:
    """The log, read as it grows; each file is read once."""

    def __init__(self, store: Store, look_seconds: float = LOOK_SECONDS) -> None:
        self._store = store
        self._every = look_seconds
        self._looked = float("-inf")
        self._read: set[str] = set()
        self.entries: set[str] = set()

    def look(self) -> list[str]:
        """Entries that came since the last look. At most every ``look_seconds`` it really looks."""
        if time.monotonic() - self._looked < self._every:
            return []
        new = [name for name in self._store.listdir(FOLDER) if name.endswith(".json") and name not in self._read]
        found = [entry for name in new for entry in self._store.read_json(f"{FOLDER}/{name}")]
        # All or nothing: what was read before a file that cannot be read is new next time, too.
        self._read.update(new)
        self.entries.update(found)
        # Only now: while the log cannot be read every look fails, and nobody is answered by an old one.
        self._looked = time.monotonic()
        return found

    def forbidden(self, image_ids: Sequence[str]) -> list[str]:
        """Those of some images that may not be shown."""
        if not self.entries:
            return []
        return [one for one in image_ids if entry_of(one) in self.entries]
