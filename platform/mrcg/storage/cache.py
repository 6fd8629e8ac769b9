"""The node cache: files of remote stores, kept on this node under their SHA-256.

Each file is checked against its SHA-256 when it is read, so the cache never returns wrong bytes and needs no
invalidation. The folder holds scans, so only its owner may read it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path

from mrcg.errors import StoreError, UsageError
from mrcg.hashing import sha256, sha256_of

log = logging.getLogger(__name__)

FOLDER, BYTES = "MRCG_CACHE", "MRCG_CACHE_BYTES"
DEFAULT_BYTES = 20 * 2**30
#: A temporary file that is still being fetched grows at least this often (seconds).
FETCHING_SECONDS = 3600.0
#: Names of files that a cache writes: a SHA-256, or a temporary name until the file is complete.
_WRITTEN = re.compile(r"[0-9a-f]{64}|\.[0-9a-f]{32}\.tmp")


def cache_folder() -> Path:
    """Return the folder of this node's caches: ``$MRCG_CACHE``, or ``mrcg`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if folder := os.environ.get(FOLDER):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mrcg"


class Cache:
    """A folder of limited size with files named by their SHA-256; the least recently used ones are evicted first."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    @classmethod
    def of_this_node(cls) -> Cache | None:
        """Return this node's cache; None if ``MRCG_CACHE_BYTES`` is 0 or less.

        It is in ``cache_folder()``; ``MRCG_CACHE_BYTES`` is its size (default 20 GiB).

        Raises:
            UsageError: the size is not an integer.
        """
        try:
            size = int(os.environ.get(BYTES) or DEFAULT_BYTES)
        except ValueError as error:
            raise UsageError(f"{BYTES} is not a number of bytes: set an integer, 0 for no cache") from error
        return cls(cache_folder(), size) if size > 0 else None

    def get(self, digest: str) -> bytes | None:
        """Return the content of the file with this SHA-256, None if it is not in the cache."""
        path = self._path(digest)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if sha256(data) != digest:
            self.remove(digest)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return data

    def put(self, digest: str, data: bytes) -> None:
        """Add a file, unless it is larger than the cache. A full or read-only disk only causes a logged warning."""
        if len(data) > self.max_bytes:
            return
        path = self._path(digest)
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            self.room_for(len(data))
            temporary.touch(mode=0o600)
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except OSError as error:
            log.warning("not cached in %s: %s", self.folder, error.strerror)
            with contextlib.suppress(OSError):
                temporary.unlink()

    def find(self, digest: str) -> Path | None:
        """Return the path of the file with this SHA-256 after checking its content, None if it is not in the cache."""
        path = self._path(digest)
        try:
            with path.open("rb") as file:
                intact = sha256_of(file)[1] == digest
        except OSError:
            return None
        if not intact:
            self.remove(digest)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return path

    def remove(self, digest: str) -> None:
        """Remove a file; do nothing if it is not in the cache."""
        self._path(digest).unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        return self.folder / digest

    def room_for(self, size: int) -> None:
        """Create the folder, and evict the least recently used files until ``size`` more bytes fit."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        files = sorted((stat.st_mtime, stat.st_size, str(path)) for path, stat in self._files())
        excess = sum(file_size for _, file_size, _ in files) + size - self.max_bytes
        for _, file_size, path in files:
            if excess <= 0:
                return
            try:
                Path(path).unlink(missing_ok=True)
            except OSError as error:
                log.warning("%s stays in the cache: %s", path, error.strerror)
                continue
            excess -= file_size

    def keep_only(self, digests: Collection[str]) -> None:
        """Remove all files except those with these SHA-256, and the temporary files of abandoned writes.

        Raises:
            StoreError: a file cannot be removed.
        """
        for path, stat in self._files():
            # A young temporary file may still be in use; its writer renames or removes it.
            if path.name in digests or (path.suffix == ".tmp" and time.time() - stat.st_mtime < FETCHING_SECONDS):
                continue
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise StoreError(
                    f"cached file {path} cannot be removed ({error.strerror}): remove it and run the same command again"
                ) from error

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield path and status (of the link itself, if it is one) of each file that a cache has written.

        Other entries are skipped: folders (initial weights have one), files with other names, and files that another
        process removes meanwhile.
        """
        try:
            with os.scandir(self.folder) as iterator:
                entries = list(iterator)
        except FileNotFoundError:
            return
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if _WRITTEN.fullmatch(entry.name) and not entry.is_dir(follow_symlinks=False):
                    yield Path(entry.path), entry.stat(follow_symlinks=False)


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
