"""One complete version of a kind: its files, checked against the manifest as they are read."""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mrcg.errors import IntegrityError, NotFoundError
from mrcg.hashing import sha256
from mrcg.storage.cache import Cache
from mrcg.storage.manifest import FileEntry, Manifest

if TYPE_CHECKING:
    from mrcg.storage.store import Store


class Artefact:
    """The files of one complete version."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.store = store
        self.manifest = manifest
        self._entries = {entry.name: entry for entry in manifest.files}
        # The files of a local store are not cached.
        self._cache = None if store.local else Cache.of_this_node()

    def names(self, prefix: str = "") -> list[str]:
        """Return the sorted names of the files that start with a prefix."""
        return sorted(f.name for f in self.manifest.files if f.name.startswith(prefix))

    def entry(self, name: str) -> FileEntry:
        """Return the manifest entry of a file.

        Raises:
            NotFoundError: the version has no such file.
        """
        if name not in self._entries:
            raise NotFoundError(f"{self.manifest.kind}/{self.manifest.version} has no file {name}")
        return self._entries[name]

    def reference(self, name: str) -> FileEntry:
        """Return the entry with which another version's manifest refers to a file of this one instead of copying it."""
        entry = self.entry(name)
        return entry.model_copy(update={"folder": entry.folder or self.manifest.folder})

    def relative(self, name: str) -> str:
        """Return the path of a file, relative to the store."""
        entry = self.entry(name)
        return f"{entry.folder or self.manifest.folder}/{entry.name}"

    def read_bytes(self, name: str) -> bytes:
        """Return the content of a file, checked against the manifest's hash.

        Raises:
            IntegrityError: the bytes differ from those that were published.
        """
        entry = self.entry(name)
        if self._cache is not None and (cached := self._cache.get(entry.sha256)) is not None:
            return cached
        data = self.store.read_bytes(self.relative(name))
        if len(data) != entry.size or sha256(data) != entry.sha256:
            raise self._damaged(name)
        if self._cache is not None:
            self._cache.put(entry.sha256, data)
        return data

    def on_disk(self, name: str) -> Path:
        """Return a path on this machine to a file, checked against the manifest's hash, for example to memory-map it.

        For a remote store this is the copy in the node cache or, if the cache is off or too small for it, a temporary
        file that is removed when this process ends.

        Raises:
            IntegrityError: the bytes differ from those that were published.
        """
        entry = self.entry(name)
        if self.store.local:
            path = Path(self.store.path(self.relative(name)))
            self._check(name, path)
            return path
        if self._cache is not None and (cached := self._cache.find(entry.sha256)) is not None:
            return cached
        folder = self._cache.folder if self._cache is not None and entry.size <= self._cache.max_bytes else temp_dir()
        target = folder / entry.sha256
        if self._cache is not None and folder == self._cache.folder:
            self._cache.room_for(entry.size)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = folder / f".{uuid.uuid4().hex}.tmp"
        try:
            temporary.touch(mode=0o600)
            self.store.fetch(self.relative(name), temporary)
            self._check(name, temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return target

    def _check(self, name: str, path: Path) -> None:
        entry = self.entry(name)
        try:
            with path.open("rb") as file:
                intact = os.fstat(file.fileno()).st_size == entry.size
                intact = intact and hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
        except FileNotFoundError as error:
            raise self._damaged(name) from error
        if not intact:
            raise self._damaged(name)

    def _damaged(self, name: str) -> IntegrityError:
        return IntegrityError(
            f"{self.store.url}/{self.relative(name)} does not match its manifest (SHA-256): "
            f"restore the file, or remove {self.manifest.kind}/{self.manifest.version} and run the command again"
        )

    def iter_files(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Yield name and checked content of each file that starts with a prefix."""
        for name in self.names(prefix):
            yield name, self.read_bytes(name)


def discard_temporary(path: Path) -> None:
    """Remove the name of a temporary file of ``Artefact.on_disk``; who has mapped it keeps its bytes."""
    if temp_dir.cache_info().currsize and path.parent == temp_dir():
        path.unlink(missing_ok=True)


@functools.cache
def temp_dir() -> Path:
    """Return a temporary folder for files that cannot be cached; it is removed when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="mrcg-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
