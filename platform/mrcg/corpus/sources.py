"""Sources of scans: folders by class or a manifest, on any file system that fsspec knows.

A source is walked, never listed: its files come one by one in a fixed order, however many there are.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from stat import S_ISREG
from typing import IO, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from mrcg.corpus.splits import TEST_NAMES, TRAIN_NAMES, VALIDATION_NAMES
from mrcg.errors import ImageError, SourceError
from mrcg.imaging.matlab import read_folds
from mrcg.storage import schemas
from mrcg.storage.filesystem import open_url, retrying

SPLIT_NAMES = TRAIN_NAMES | TEST_NAMES | VALIDATION_NAMES
FOLD = re.compile(r"fold[-_]?(\d+)", re.IGNORECASE)
#: Columns of a manifest beside ``path``.
COLUMNS = ("label", "patient", "study", "site", "plane", "sequence", "acquired", "fold", "split")
PLANES = ("axial", "coronal", "sagittal")
_MANIFESTS = (".csv", ".parquet")
#: Names that tell before the first byte is read that patients are named inside.
_IDENTIFYING = re.compile(r"\.(dcm|dicom|mat)$|(^|/)dicomdir$", re.IGNORECASE)
_FOLDS_FILE = "cvind.mat"


@dataclass(frozen=True)
class SourceFile:
    """One file of a source and what folders or a manifest say of it.

    Attributes:
        key: path within the source, or as a manifest states it.
        stamp: changes when the file or what is said of it changes.
        size: bytes; -1 where the file is missing.
        labelled: a manifest states the label (or that there is none); folders only suggest one.
    """

    key: str
    stamp: str
    size: int = 0
    label: str | None = None
    split: str | None = None
    fold: int | None = None
    patient: str | None = None
    study: str | None = None
    site: str | None = None
    plane: str | None = None
    sequence: str | None = None
    acquired: str | None = None
    labelled: bool = False


class Files(Protocol):
    """A source that can be walked and read."""

    location: str
    declares_patients: bool

    def walk(self) -> Iterator[SourceFile]:
        """All files, always in the same order."""
        ...

    def read(self, file: SourceFile) -> bytes:
        """Content of one file.

        Raises:
            OSError: it cannot be read.
        """
        ...


def open_source(location: str) -> Files:
    """The source at a folder or manifest.

    Raises:
        SourceError: there is no such folder or manifest.
    """
    fs, root = open_url(location)
    if root.lower().endswith(_MANIFESTS) and fs.isfile(root):
        return ManifestSource(fs, root, location)
    if not fs.isdir(root):
        raise SourceError(f"--source {location}: no such folder or manifest (.csv, .parquet)")
    return FolderSource(fs, root, location)


def survey(files: Files) -> Source:
    """Walk a source once: the digest of its listing, and what is in it.

    Raises:
        SourceError: it holds no file.
    """
    surveyor = Surveyor(files)
    for _ in surveyor.walk():
        pass
    return surveyor.source()


class Surveyor:
    """Counts and digests the files of a source while somebody walks it."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._state = hashlib.blake2b(digest_size=16)
        self._count = self._size = 0
        self._identifying = files.declares_patients

    def walk(self) -> Iterator[SourceFile]:
        """The files, one by one."""
        for file in self._files.walk():
            self._state.update(repr(file).encode("utf-8", "surrogatepass"))
            self._count += 1
            self._size += max(0, file.size)
            self._identifying = self._identifying or bool(_IDENTIFYING.search(file.key))
            yield file

    def source(self) -> Source:
        """What was found, when the walk is over.

        Raises:
            SourceError: no file.
        """
        where = self._files.location
        if not self._count:
            raise SourceError(f"--source {where}: it holds no files; expected SRC/<class>/<image> or a manifest")
        return Source(where, self._state.hexdigest(), self._count, self._size, self._identifying)


class FolderSource:
    """A folder: ``<class>/…`` gives the label, ``<split>/<class>/…`` also the split, ``fold<k>/<class>/…`` the fold.

    A ``cvind.mat`` at the top gives ``1.mat``, ``2.mat``, … their folds. Hidden files are left out.
    """

    declares_patients = False

    def __init__(self, fs: AbstractFileSystem, root: str, location: str) -> None:
        self._fs = fs
        self._root = root
        self.location = root if isinstance(fs, LocalFileSystem) else location

    def walk(self) -> Iterator[SourceFile]:
        """All files in the order of their keys."""
        folds = self._folds()
        for key, size, stamp in _walk(self._fs, self._root, ""):
            if key == _FOLDS_FILE:
                continue
            label, split, fold = _place(key)
            name = PurePosixPath(key)
            if folds and name.suffix == ".mat" and name.stem.isdigit() and int(name.stem) <= len(folds):
                fold = folds[int(name.stem) - 1]
            yield SourceFile(key, stamp, size, label, split, fold)

    def read(self, file: SourceFile) -> bytes:
        """Content of one file."""
        return _read(self._fs, f"{self._root}/{file.key}")

    def _folds(self) -> list[int]:
        path = f"{self._root}/{_FOLDS_FILE}"
        if not self._fs.isfile(path):
            return []
        try:
            return read_folds(_read(self._fs, path))
        except ImageError as error:
            raise SourceError(f"--source {self.location}: {_FOLDS_FILE}: {error}") from error


class ManifestSource:
    """A CSV or Parquet table with a column ``path`` and any of ``COLUMNS``; other columns are not looked at.

    A path is absolute, a URL, or relative to the manifest's folder. The order is the manifest's.
    """

    def __init__(self, fs: AbstractFileSystem, root: str, location: str) -> None:
        self._fs = fs
        self._root = root
        self.location = root if isinstance(fs, LocalFileSystem) else location
        names = self._names()
        if "path" not in names:
            known = ", ".join(COLUMNS)
            raise SourceError(f"--source {location}: no column path; a manifest has path and any of {known}")
        self._labels = "label" in names
        self.declares_patients = bool({"patient", "study"} & set(names))

    def walk(self) -> Iterator[SourceFile]:
        """All rows in the order of the manifest."""
        for number, row in enumerate(self._rows(), 1):
            key = (row.get("path") or "").strip()
            if not key:
                raise SourceError(f"--source {self.location}: row {number} has no path")
            fs, path = self._where(key)
            try:
                info: Mapping[str, Any] = fs.info(path)
                size, stamp = int(info.get("size") or 0), _stamp(info)
            except FileNotFoundError:
                size, stamp = -1, "missing"
            said = {name: (row.get(name) or "").strip() or None for name in COLUMNS}
            self._check(number, said)
            fold = said.pop("fold")
            yield SourceFile(
                key, stamp, size, fold=None if fold is None else int(fold),
                label=said["label"], split=said["split"], patient=said["patient"], study=said["study"],
                site=said["site"], plane=said["plane"], sequence=said["sequence"], acquired=said["acquired"],
                labelled=self._labels,
            )  # fmt: skip

    def read(self, file: SourceFile) -> bytes:
        """Content of one file."""
        return _read(*self._where(file.key))

    def _where(self, key: str) -> tuple[AbstractFileSystem, str]:
        if "://" in key:
            return open_url(key)
        return self._fs, key if key.startswith("/") else f"{self._root.rsplit('/', 1)[0]}/{key}"

    def _check(self, number: int, said: Mapping[str, str | None]) -> None:
        def refuse(name: str, expected: str) -> SourceError:
            return SourceError(f"--source {self.location}: row {number}: {name} is not {expected}")

        if said["fold"] is not None and not re.fullmatch(r"\d{1,6}", said["fold"]):
            raise refuse("fold", "a whole number")
        if said["acquired"] is not None and not re.fullmatch(r"\d{4}-\d\d-\d\d", said["acquired"]):
            raise refuse("acquired", "a day like 2026-01-31")
        if said["plane"] is not None and said["plane"] not in PLANES:
            raise refuse("plane", f"one of {', '.join(PLANES)}")

    def _names(self) -> list[str]:
        if self._root.lower().endswith(".parquet"):
            with self._fs.open(self._root, "rb") as file:
                return list(pq.read_schema(file).names)
        with self._text() as file:
            return next(csv.reader(file), [])

    def _text(self) -> IO[str]:
        file: IO[str] = self._fs.open(self._root, "r", encoding="utf-8-sig", newline="")
        return file

    def _rows(self) -> Iterator[Mapping[str, str | None]]:
        try:
            if not self._root.lower().endswith(".parquet"):
                with self._text() as text:
                    yield from csv.DictReader(text)
                return
            with self._fs.open(self._root, "rb") as file:
                wanted = [name for name in self._names() if name in ("path", *COLUMNS)]
                for batch in pq.ParquetFile(file).iter_batches(columns=wanted):
                    for row in batch.to_pylist():
                        yield {name: None if value is None else str(value) for name, value in row.items()}
        except (UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
            raise SourceError(f"--source {self.location} is not a readable table: {error}") from error


def listing_table(files: list[SourceFile]) -> pa.Table:
    """Files as a table of ``schemas.LISTING``'s columns."""
    return pa.Table.from_pylist([vars(file) for file in files], schemas.LISTING)


def listed(table: pa.Table) -> list[SourceFile]:
    """The files of a table of ``schemas.LISTING``."""
    return [SourceFile(**row) for row in table.to_pylist()]


def _walk(
    fs: AbstractFileSystem, folder: str, prefix: str, above: tuple[str, ...] = ()
) -> Iterator[tuple[str, int, str]]:
    """(key, size, stamp) of all files below a folder, in the order of their keys; one folder in memory at a time."""
    if isinstance(fs, LocalFileSystem):
        real = os.path.realpath(folder)
        if real in above:
            return  # a link back up
        above = (*above, real)
        with os.scandir(folder) as found:
            names = sorted((f"{entry.name}/" if entry.is_dir() else entry.name) for entry in found)
        entries: list[tuple[str, Mapping[str, Any]]] = [(name, {}) for name in names]
    else:
        fs.invalidate_cache(folder)
        entries = []
        for info in fs.ls(folder, detail=True):
            path = str(info["name"]).rstrip("/")
            if path == folder.rstrip("/"):
                continue  # object stores list a folder's own marker
            entries.append((path.rsplit("/", 1)[-1] + ("/" if info["type"] == "directory" else ""), info))
        entries.sort(key=lambda entry: entry[0])
    for name, info in entries:
        if name.startswith("."):
            continue
        if name.endswith("/"):
            yield from _walk(fs, f"{folder}/{name[:-1]}", prefix + name, above)
            continue
        if isinstance(fs, LocalFileSystem):
            try:
                stat = os.stat(f"{folder}/{name}")
            except FileNotFoundError:  # a link to nowhere
                yield prefix + name, -1, "missing"
                continue
            if not S_ISREG(stat.st_mode):
                continue  # reading a pipe or a device would wait for ever
            info = {"size": stat.st_size, "mtime": stat.st_mtime}
        yield prefix + name, int(info.get("size") or 0), _stamp(info)


def _read(fs: AbstractFileSystem, path: str) -> bytes:
    data = retrying(fs, lambda: fs.cat_file(path))
    assert isinstance(data, bytes)
    return data


def _stamp(info: Mapping[str, Any]) -> str:
    # An object store's ETag changes with the content; a file's size and time do where nobody cheats.
    return str(info.get("ETag") or f"{info.get('size')}-{info.get('mtime', '')}")


def _place(key: str) -> tuple[str | None, str | None, int | None]:
    """Label, split and fold of a file, read off its folders."""
    folders = key.split("/")[:-1]
    split = fold = None
    if folders and folders[0].lower() in SPLIT_NAMES:
        split, folders = folders[0], folders[1:]
    elif folders and (named := FOLD.fullmatch(folders[0])):
        fold, folders = int(named[1]), folders[1:]
    return (folders[0] if folders else None), split, fold


@dataclass(frozen=True)
class Source:
    """A source of scans: where it is, the digest of its listing and what a walk through it counted.

    ``identifying``: it holds files that name patients, as far as that can be told before they are read.
    """

    location: str
    listing_digest: str
    files: int
    size: int
    identifying: bool
