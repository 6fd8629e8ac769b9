"""The walk over a folder of scans. No name, link or file in it ends the walk: what cannot be read is an entry, too."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from stat import S_ISREG
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from mrcg.errors import SourceError
from mrcg.storage.filesystem import retrying

#: Why an entry of a folder cannot be read: the stamp of its ``SourceFile``, and the reason in the quarantine.
UNUSABLE = {
    "missing": "there is no such file",
    "link_loop": "the link leads to itself",
    "unreadable": "the file system does not let it be read: check its permissions and its disk",
    "not_a_file": "it is a folder, a pipe, a socket or a device",
}
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")
Entry = tuple[str, int, str]


def walk(fs: AbstractFileSystem, root: str, location: str) -> Iterator[Entry]:
    """Yield (key, size, stamp) of all files below a folder, ordered by key. Hidden files and folders are left out.

    The entry of what cannot be read has size -1 and one of ``UNUSABLE`` as stamp; that of a folder ends in a slash.
    Bytes of a name that are no UTF-8 are escaped. Only the listings of the folders on the current path are
    in memory.

    Raises:
        SourceError: the folder itself cannot be listed.
    """
    try:
        yield from _walk(fs, root, "", ())
    except _RootError as error:
        raise SourceError(
            f"--source {location} cannot be listed ({type(error.__cause__).__name__}): check its permissions"
        ) from error


def original_name(path: str) -> str:
    """Return the path of a local file whose key was escaped."""
    if "\\x" not in path or os.path.lexists(path):
        return path
    return os.fsdecode(_ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), os.fsencode(path)))


def unusable(error: OSError) -> str:
    """Return which of ``UNUSABLE`` an error of a file system means."""
    if error.errno == errno.ELOOP:
        return "link_loop"
    if isinstance(error, (IsADirectoryError, NotADirectoryError)):
        return "not_a_file"
    return "missing" if isinstance(error, FileNotFoundError) else "unreadable"


def stamp_of(info: Mapping[str, Any]) -> str:
    """Return what changes with a file: an object store's ETag, else size and modification time.

    A write that keeps the size and resets the time is not seen.
    """
    return str(info.get("ETag") or f"{info.get('size')}-{info.get('mtime', '')}")


class _RootError(Exception):
    """The folder that the walk began with cannot be listed."""


def _walk(fs: AbstractFileSystem, folder: str, prefix: str, parents: tuple[str, ...]) -> Iterator[Entry]:
    local = isinstance(fs, LocalFileSystem)
    try:
        if local:
            real = os.path.realpath(folder)
            if real in parents:
                return  # a symbolic link to a parent folder
            parents = (*parents, real)
        entries = _local_entries(folder) if local else _remote_entries(fs, folder)
    except OSError as error:
        if not prefix:
            raise _RootError from error
        yield _escaped(prefix), -1, unusable(error)
        return
    for name, info in entries:
        if name.startswith("."):
            continue
        if name.endswith("/"):
            yield from _walk(fs, f"{folder}/{name[:-1]}", prefix + name, parents)
        elif local:
            size, stamp = _local_state(f"{folder}/{name}")
            yield _escaped(prefix + name), size, stamp
        else:
            yield prefix + name, int(info.get("size") or 0), stamp_of(info)


def _local_entries(folder: str) -> list[tuple[str, Mapping[str, Any]]]:
    names = []
    with os.scandir(folder) as children:
        for child in children:
            try:
                names.append(f"{child.name}/" if child.is_dir() else child.name)
            except OSError:
                names.append(child.name)  # its state says why
    return [(name, {}) for name in sorted(names)]


def _local_state(path: str) -> tuple[int, str]:
    try:
        state = os.stat(path)
    except OSError as error:
        return -1, unusable(error)
    if not S_ISREG(state.st_mode):
        return -1, "not_a_file"  # reading a pipe or a device could block forever
    return state.st_size, stamp_of({"size": state.st_size, "mtime": state.st_mtime})


def _remote_entries(fs: AbstractFileSystem, folder: str) -> list[tuple[str, Mapping[str, Any]]]:
    fs.invalidate_cache(folder)
    entries = []
    for info in retrying(fs, lambda: fs.ls(folder, detail=True)):
        path = str(info["name"]).rstrip("/")
        if path != folder.rstrip("/"):  # object stores list the folder's own marker object
            entries.append((path.rsplit("/", 1)[-1] + ("/" if info["type"] == "directory" else ""), info))
    return sorted(entries, key=lambda entry: entry[0])


def _escaped(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")
