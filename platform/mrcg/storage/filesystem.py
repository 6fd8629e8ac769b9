"""File systems by URL: opened the same way everywhere, tried again where they are remote, hashed while written."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import IO, Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from mrcg.errors import StoreError, UsageError
from mrcg.storage.manifest import FileEntry

Result = TypeVar("Result")
#: Object stores answer 500, 503 and SlowDown as a matter of course.
TRIES = 6
_S3 = ("s3://", "s3a://")
_S3_OPTIONS = {"config_kwargs": {"retries": {"mode": "standard", "max_attempts": 10}}}


class HashingFile:
    """A file to be written in order; knows its size and SHA-256 when it is done."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._state = hashlib.sha256()
        self.size = 0
        self.closed = False

    def write(self, data: Any) -> int:
        """Write bytes or a buffer."""
        view = memoryview(data)
        self._state.update(view)
        self._file.write(view)
        self.size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        """Bytes written."""
        return self.size

    def flush(self) -> None:
        """What is buffered stays so until the file ends."""

    def writable(self) -> bool:
        """Always."""
        return True

    def readable(self) -> bool:
        """Never."""
        return False

    def seekable(self) -> bool:
        """Never: the hash follows the order of writing."""
        return False

    def close(self) -> None:
        """Left to the block that opened it."""
        self.closed = True

    def entry(self, name: str) -> FileEntry:
        """What was written, as an entry of a manifest."""
        return FileEntry(name=name, size=self.size, sha256=self._state.hexdigest())


def retrying(fs: fsspec.AbstractFileSystem, call: Callable[[], Result]) -> Result:
    """A call on a file system, tried again where a remote one fails for no fault of ours.

    Raises:
        OSError: of a local file system, or that there is no such file or no right to it.
        StoreError: a remote one keeps failing.
    """
    for attempt in range(TRIES):
        try:
            return call()
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except OSError as error:
            if isinstance(fs, LocalFileSystem):
                raise
            if attempt == TRIES - 1:
                raise StoreError(f"the remote store failed {TRIES} times: {error}; try again later") from error
            time.sleep(0.2 * 2**attempt)
    raise AssertionError("unreachable")


def open_url(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """File system and path of a URL.

    Raises:
        UsageError: no file system of that name, or its package is not installed.
    """
    try:
        fs, root = fsspec.core.url_to_fs(url, **(_S3_OPTIONS if url.startswith(_S3) else {}))
    except (ValueError, ImportError) as error:
        raise UsageError(
            f"{url} cannot be opened ({error}): name a folder, or s3://… with mrcg[s3] installed"
        ) from error
    return fs, str(root).rstrip("/")
