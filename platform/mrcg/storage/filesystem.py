"""File systems: open them by URL, retry remote calls, hash files while they are written, and local file operations."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec
import tenacity
from fsspec.implementations.local import LocalFileSystem
from tenacity import RetryError

from mrcg.errors import StoreError, UsageError
from mrcg.storage.manifest import FileEntry

Result = TypeVar("Result")
#: Attempts at a call on a remote file system: object stores regularly answer with 500, 503 or SlowDown.
TRIES = 6
_S3 = ("s3://", "s3a://")
_S3_OPTIONS = {"config_kwargs": {"retries": {"mode": "standard", "max_attempts": 10}}}


class HashingFile:
    """A file that is written sequentially and computes its size and SHA-256 meanwhile."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._state = hashlib.sha256()
        self.size = 0
        self.closed = False

    def write(self, data: Any) -> int:
        """Write bytes or a buffer; return the number of bytes."""
        view = memoryview(data)
        self._state.update(view)
        self._file.write(view)
        self.size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        """Return the number of bytes written so far."""
        return self.size

    def flush(self) -> None:
        """Do nothing: the underlying file is flushed when it is closed."""

    def writable(self) -> bool:
        """Return True."""
        return True

    def readable(self) -> bool:
        """Return False."""
        return False

    def seekable(self) -> bool:
        """Return False: the hash needs the bytes in order."""
        return False

    def close(self) -> None:
        """Mark the file as closed; the code that opened the underlying file closes it."""
        self.closed = True

    def entry(self, name: str) -> FileEntry:
        """Return the manifest entry of what was written."""
        return FileEntry(name=name, size=self.size, sha256=self._state.hexdigest())


#: Errors of a remote file system that another try does not mend.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError)
_remote = tenacity.Retrying(
    retry=tenacity.retry_if_exception(lambda error: isinstance(error, OSError) and not isinstance(error, _FINAL)),
    stop=tenacity.stop_after_attempt(TRIES),
    wait=tenacity.wait_exponential(multiplier=0.2, min=0.2),
)


def retrying(fs: fsspec.AbstractFileSystem, call: Callable[[], Result]) -> Result:
    """Make a call on a file system; retry it with growing pauses where the file system is remote.

    Raises:
        OSError: any error of a local file system; on a remote one the file is missing, is a folder or may not be
            accessed.
        StoreError: a remote file system failed ``TRIES`` times.
    """
    if isinstance(fs, LocalFileSystem):
        return call()
    try:
        return _remote(call)
    except RetryError as error:
        failure = error.last_attempt.exception()
        raise StoreError(f"the remote store failed {TRIES} times ({failure}): try again later") from failure


def open_url(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return file system and path of a URL.

    Raises:
        UsageError: the URL's scheme is unknown, or its package is not installed.
    """
    try:
        fs, root = fsspec.core.url_to_fs(url, **(_S3_OPTIONS if url.startswith(_S3) else {}))
    except (ValueError, ImportError) as error:
        raise UsageError(
            f"{url} cannot be opened ({error}): give a folder, or s3://… with mrcg[s3] installed"
        ) from error
    return fs, str(root).rstrip("/")


def remove_local(path: str) -> None:
    """Remove a file, a link (not what it points to) or a folder, even while other processes remove files in it.

    Raises:
        FileNotFoundError: the path does not exist.
    """
    if os.path.islink(path) or not os.path.isdir(path):
        os.remove(path)
        return
    while True:
        try:
            shutil.rmtree(path)
            return
        except FileNotFoundError:
            if not os.path.isdir(path):
                raise


def temporary_path(path: Path) -> Path:
    """Return a new hidden path in the folder of a file, and create that folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"


def write_temporary(path: Path, data: bytes) -> Path:
    """Write data to a temporary file in the folder of ``path`` and flush it to disk."""
    temporary = temporary_path(path)
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return temporary
