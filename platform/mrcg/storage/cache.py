"""Files of a remote store kept on this node, by the hash of what they hold.

A file is found by its SHA-256 alone and checked when it is read, so a cache can never serve the wrong bytes and
needs no invalidation. The folder holds scans: only its owner may look into it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import uuid
from pathlib import Path

from mrcg.errors import UsageError
from mrcg.hashing import sha256

log = logging.getLogger(__name__)

FOLDER, BYTES = "MRCG_CACHE", "MRCG_CACHE_BYTES"
DEFAULT_BYTES = 20 * 2**30


class Cache:
    """A folder of files named by their SHA-256, of limited size; the longest unused go first."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    @classmethod
    def of_this_node(cls) -> Cache | None:
        """The cache at ``MRCG_CACHE`` (``~/.cache/mrcg``) of ``MRCG_CACHE_BYTES`` (20 GiB); None where that is 0.

        Raises:
            UsageError: the size is not a number.
        """
        folder = os.environ.get(FOLDER) or os.path.join(
            os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "mrcg"
        )
        try:
            size = int(os.environ.get(BYTES) or DEFAULT_BYTES)
        except ValueError as error:
            raise UsageError(f"{BYTES} is not a number of bytes") from error
        return cls(Path(folder), size) if size > 0 else None

    def get(self, digest: str) -> bytes | None:
        """The file with this SHA-256, None where it is not kept (any more)."""
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
        """Keep a file; a full or read-only disk only means that it is not kept."""
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
        """Path of the file with this SHA-256, checked; None where it is not kept (any more)."""
        path = self._path(digest)
        try:
            with path.open("rb") as file:
                sound = hashlib.file_digest(file, "sha256").hexdigest() == digest
        except OSError:
            return None
        if not sound:
            self.remove(digest)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return path

    def remove(self, digest: str) -> None:
        """Forget a file."""
        self._path(digest).unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        return self.folder / digest

    def room_for(self, size: int) -> None:
        """Remove the longest unused until so many bytes more fit."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                stat = entry.stat()
                kept.append((stat.st_mtime, stat.st_size, entry.path))
        kept.sort()
        over = sum(one[1] for one in kept) + size - self.max_bytes
        for _, freed, path in kept:
            if over <= 0:
                return
            Path(path).unlink(missing_ok=True)
            over -= freed
