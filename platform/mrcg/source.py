"""Sources of scans: folders of images by class, on any file system that fsspec knows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fsspec.implementations.local import LocalFileSystem

from mrcg.errors import SourceError
from mrcg.hashing import digest
from mrcg.splits import TEST_NAMES, TRAIN_NAMES, VALIDATION_NAMES
from mrcg.stages import Source
from mrcg.store import open_url

SPLIT_NAMES = TRAIN_NAMES | TEST_NAMES | VALIDATION_NAMES
FOLD = re.compile(r"fold[-_]?(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class SourceFile:
    """One file of a source: its key (path within it), what changes when it changes, and its place in the folders."""

    key: str
    stamp: str
    label: str | None
    split: str | None
    fold: int | None = None


def list_source(location: str) -> tuple[Source, list[SourceFile]]:
    """All files of a source, sorted by key; hidden ones left out.

    ``SRC/<class>/…`` gives the label, ``SRC/<split>/<class>/…`` also the source's own split and
    ``SRC/fold<k>/<class>/…`` its fold.

    Raises:
        SourceError: there is no such folder, or it holds no file.
    """
    fs, root = open_url(location)
    if not fs.isdir(root):
        raise SourceError(f"--source {location}: no such folder")
    files = []
    for path, info in fs.find(root, detail=True).items():
        key = str(path)[len(root) + 1 :]
        if any(part.startswith(".") for part in key.split("/")):
            continue
        files.append(SourceFile(key, _stamp(info), *_place(key)))
    if not files:
        raise SourceError(f"--source {location}: the folder holds no files; expected SRC/<class>/<image>")
    files.sort(key=lambda file: file.key)
    absolute = root if isinstance(fs, LocalFileSystem) else location
    return Source(absolute, digest([(f.key, f.stamp) for f in files], 32)), files


def read_file(location: str, key: str) -> bytes:
    """Content of one file of a source."""
    fs, root = open_url(location)
    data = fs.cat_file(f"{root}/{key}")
    assert isinstance(data, bytes)
    return data


def _stamp(info: dict[str, object]) -> str:
    # An object store's ETag changes with the content; a file's size and time do where nobody cheats.
    return str(info.get("ETag") or f"{info.get('size')}-{info.get('mtime', '')}")


def _place(key: str) -> tuple[str | None, str | None, int | None]:
    """Label, split and fold of a file, read off its folders."""
    folders: Sequence[str] = key.split("/")[:-1]
    split = fold = None
    if folders and folders[0].lower() in SPLIT_NAMES:
        split, folders = folders[0], folders[1:]
    elif folders and (named := FOLD.fullmatch(folders[0])):
        fold, folders = int(named[1]), folders[1:]
    return (folders[0] if folders else None), split, fold
