"""Sources of scans: folders of images by class, on any file system that fsspec knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import fsspec

from mrcg.errors import SourceError
from mrcg.hashing import digest
from mrcg.splits import TEST_NAMES, TRAIN_NAMES
from mrcg.stages import Source

SPLIT_NAMES = TRAIN_NAMES | TEST_NAMES


@dataclass(frozen=True)
class SourceFile:
    """One file of a source: its key (path within it), what changes when it changes, and its place in the folders."""

    key: str
    stamp: str
    label: str | None
    split: str | None


def list_source(location: str) -> tuple[Source, list[SourceFile]]:
    """All files of a source, sorted by key; hidden ones left out.

    ``SRC/<class>/…`` gives the label, ``SRC/<split>/<class>/…`` also the source's own split.

    Raises:
        SourceError: there is no such folder, or it holds no file.
    """
    fs, root = fsspec.core.url_to_fs(location)
    root = str(root).rstrip("/")
    if not fs.isdir(root):
        raise SourceError(f"--source {location}: no such folder")
    files = []
    for path, info in fs.find(root, detail=True).items():
        key = str(path)[len(root) + 1 :]
        if any(part.startswith(".") for part in key.split("/")):
            continue
        label, split = _place(key)
        files.append(SourceFile(key, _stamp(info), label, split))
    if not files:
        raise SourceError(f"--source {location}: the folder holds no files; expected SRC/<class>/<image>")
    files.sort(key=lambda file: file.key)
    return Source(location, digest([(f.key, f.stamp) for f in files], 32)), files


def read_file(location: str, key: str) -> bytes:
    """Content of one file of a source."""
    fs, root = fsspec.core.url_to_fs(location)
    data = fs.cat_file(f"{str(root).rstrip('/')}/{key}")
    assert isinstance(data, bytes)
    return data


def _stamp(info: dict[str, object]) -> str:
    # An object store's ETag changes with the content; a file's size and time do where nobody cheats.
    return str(info.get("ETag") or f"{info.get('size')}-{info.get('mtime', '')}")


def _place(key: str) -> tuple[str | None, str | None]:
    folders: Sequence[str] = key.split("/")[:-1]
    split = folders[0] if folders and folders[0].lower() in SPLIT_NAMES else None
    if split is not None:
        folders = folders[1:]
    return (folders[0] if folders else None), split
