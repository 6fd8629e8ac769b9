"""Append-only logs: facts that are added and never removed, such as tombstones and the suppression list."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterable

from mrcg.errors import AlreadyExistsError
from mrcg.hashing import digest
from mrcg.storage.store import Store


class AppendLog:
    """A set of entries that only grows: a folder of JSON lists, each named by the digest of its entries.

    Writers never wait for each other, and adding the same entries again changes nothing.

    Args:
        store: that holds the log.
        folder: of the log, below the root of the store.
    """

    def __init__(self, store: Store, folder: str) -> None:
        self._store, self._folder = store, folder

    def add(self, entries: Iterable[str]) -> None:
        """Add entries, all in one file."""
        added = sorted(set(entries))
        if added:
            with contextlib.suppress(AlreadyExistsError):
                self._store.create(f"{self._folder}/{digest(added, 32)}.json", json.dumps(added).encode())

    def entries(self) -> frozenset[str]:
        """Return all entries.

        Raises:
            StoreError: the log cannot be read.
        """
        return frozenset(entry for added in self.unread(()).values() for entry in added)

    def unread(self, read: Collection[str]) -> dict[str, list[str]]:
        """Return the entries of each file whose name is not among those that were read.

        Raises:
            StoreError: the log cannot be read.
        """
        names = [name for name in self._store.listdir(self._folder) if name.endswith(".json") and name not in read]
        return {name: self._store.read_json(f"{self._folder}/{name}") for name in names}
