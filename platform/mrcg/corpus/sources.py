"""Sources of scans: a folder tree or a manifest, on any file system that fsspec supports.

Files are yielded one by one in a fixed order, so that a source of any size can be walked in little memory.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, field
from pathlib import PurePosixPath
from typing import Any, Protocol

import pyarrow as pa
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from mrcg.corpus.folder_walk import original_name, stamp_of, unusable, walk
from mrcg.corpus.manifest_table import ManifestTable
from mrcg.corpus.splits import TEST_NAMES, TRAIN_NAMES, VALIDATION_NAMES
from mrcg.errors import ImageError, SourceError
from mrcg.imaging.lesion import Lesion
from mrcg.imaging.matlab import read_folds
from mrcg.imaging.sequences import PLANES
from mrcg.storage import schemas
from mrcg.storage.filesystem import open_url, retrying
from mrcg.text import normalised_or_none

SPLIT_NAMES = TRAIN_NAMES | TEST_NAMES | VALIDATION_NAMES
FOLD = re.compile(r"fold[-_]?(\d+)", re.IGNORECASE)
#: Optional columns of a manifest; ``path`` is required.
COLUMNS = (
    "label", "patient", "issuer", "study", "site", "plane", "sequence", "acquired", "fold", "split", *schemas.LESION
)  # fmt: skip
_MANIFESTS = (".csv", ".parquet")
#: File names of formats that may name patients, recognised before the files are read.
_IDENTIFYING = re.compile(r"\.(dcm|dicom|mat)$|(^|/)dicomdir$", re.IGNORECASE)
_BIDS_ENTITY = re.compile(r"(sub|ses)-", re.IGNORECASE)
_FOLDS_FILE = "cvind.mat"
#: A manifest at the top of a folder lists scans and is none itself.
MANIFEST = "manifest.csv"


@dataclass(frozen=True)
class SourceFile:
    """A file of a source, with the metadata that its folders or the manifest give.

    The listing digest hashes the ``repr``: renaming the class or a field, or adding one that it shows, changes the
    version of every corpus.

    Attributes:
        key: path within the source, or as the manifest states it.
        stamp: changes with the file: its ETag, else its size and modification time; the reason (``UNUSABLE``) where
            there is no file to be read.
        size: in bytes; -1 if the stamp is a reason.
        label: from the manifest, else the folder name.
        labelled: whether a manifest states the label (None then means unlabelled); a folder name is only a possible
            label.
        lesion: from the manifest; not in the ``repr``.
        issuer: who assigned the id of the patient, from the manifest; not in the ``repr``.
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
    lesion: Lesion | None = field(default=None, repr=False)
    issuer: str | None = field(default=None, repr=False)


class SourceReader(Protocol):
    """A source that can be walked and read.

    Attributes:
        location: URL, or absolute path on the local file system.
        declares_patients: the source states patients or studies itself, outside the files.
    """

    location: str
    declares_patients: bool

    def walk(self) -> Iterator[SourceFile]:
        """Yield all files, always in the same order."""
        ...

    def read(self, file: SourceFile) -> bytes:
        """Return the content of a file.

        Raises:
            OSError: the file cannot be read.
        """
        ...

    def read_beside(self, key: str, most: int) -> bytes | None:
        """Return the content of a small file beside those of the source; None if it is larger or cannot be read."""
        ...


def open_source(location: str) -> SourceReader:
    """Open the source at a folder or manifest.

    Raises:
        SourceError: there is no such folder or manifest, or the manifest has no column ``path``.
    """
    fs, root = open_url(location)
    if root.lower().endswith(_MANIFESTS) and fs.isfile(root):
        return ManifestSource(fs, root, location)
    if not fs.isdir(root):
        raise SourceError(f"--source {location}: no such folder or manifest (.csv, .parquet)")
    return FolderSource(fs, root, location)


def survey(source: SourceReader) -> Source:
    """Walk a source once and return its listing digest and counts.

    Raises:
        SourceError: the source has no files, or a row of its manifest is wrong.
    """
    surveyor = Surveyor(source)
    for _ in surveyor.walk():
        pass
    return surveyor.source()


class Surveyor:
    """Counts and digests the files of a source while the caller walks it."""

    def __init__(self, source: SourceReader) -> None:
        self._source = source
        self._state = hashlib.blake2b(digest_size=16)
        self._count = self._size = 0
        self._identifying = source.declares_patients

    def walk(self) -> Iterator[SourceFile]:
        """Yield the files of the source, and count and digest each."""
        for file in self._source.walk():
            self._state.update(repr(file).encode("utf-8", "surrogatepass"))
            if file.lesion is not None:
                self._state.update(repr(file.lesion).encode())
            self._count += 1
            self._size += max(0, file.size)
            self._identifying = self._identifying or bool(_IDENTIFYING.search(file.key))
            yield file

    def source(self) -> Source:
        """Return the summary of the source; call it after the walk has ended.

        Raises:
            SourceError: the source has no files.
        """
        location = self._source.location
        if not self._count:
            raise SourceError(f"--source {location} has no files; expected SRC/<class>/<image> or a manifest")
        return Source(location, self._state.hexdigest(), self._count, self._size, self._identifying)


class FolderSource:
    """A folder: ``<class>/…`` gives the label, ``<split>/<class>/…`` also the split, ``fold<k>/<class>/…`` the fold.

    A ``cvind.mat`` at the top gives the folds of ``1.mat``, ``2.mat``, …. Hidden files and folders are skipped. So is
    a ``manifest.csv`` at the top: it is a source of its own.
    """

    declares_patients = False

    def __init__(self, fs: AbstractFileSystem, root: str, location: str) -> None:
        self._fs = fs
        self._root = root
        self.location = root if isinstance(fs, LocalFileSystem) else location

    def walk(self) -> Iterator[SourceFile]:
        """Yield all files, ordered by key."""
        folds = self._folds()
        for key, size, stamp in walk(self._fs, self._root, self.location):
            if key in (_FOLDS_FILE, MANIFEST):
                continue
            label, split, fold = _folder_facts(key)
            path = PurePosixPath(key)
            if folds and path.suffix == ".mat" and path.stem.isdigit() and int(path.stem) <= len(folds):
                fold = folds[int(path.stem) - 1]
            yield SourceFile(key, stamp, size, label, split, fold)

    def read(self, file: SourceFile) -> bytes:
        """Return the content of a file."""
        return _read(self._fs, self._path(file.key))

    def read_beside(self, key: str, most: int) -> bytes | None:
        """Return the content of a small file of the folder; None if it is larger or cannot be read."""
        return _read_small(self._fs, self._path(key), most)

    def _path(self, key: str) -> str:
        path = f"{self._root}/{key}"
        return original_name(path) if isinstance(self._fs, LocalFileSystem) else path

    def _folds(self) -> list[int]:
        path = f"{self._root}/{_FOLDS_FILE}"
        if not self._fs.isfile(path):
            return []
        try:
            return read_folds(_read(self._fs, path))
        except ImageError as error:
            raise SourceError(f"--source {self.location}: {_FOLDS_FILE}: {error}") from error


class ManifestSource:
    """A CSV or Parquet table with a column ``path`` and any of ``COLUMNS``; other columns are ignored.

    A path is absolute, a URL, or relative to the manifest's folder. Files are in the order of the rows.
    """

    def __init__(self, fs: AbstractFileSystem, root: str, location: str) -> None:
        self._fs = fs
        self._root = root
        self.location = root if isinstance(fs, LocalFileSystem) else location
        self._table = ManifestTable(fs, root, location, ("path", *COLUMNS))
        names = self._table.columns
        if "path" not in names:
            optional = ", ".join(COLUMNS)
            raise SourceError(f"--source {location} has no column path; a manifest needs path and any of {optional}")
        self._has_labels = "label" in names
        self.declares_patients = bool({"patient", "study"} & names)

    def walk(self) -> Iterator[SourceFile]:
        """Yield the file of each row, in the order of the rows; size -1 if the file is missing."""
        for number, row in self._table.rows():
            key = row["path"]
            if not key:
                raise SourceError(f"--source {self.location}: row {number} has no path")
            size, stamp = self._state_of(key)
            values = {name: row.get(name) for name in COLUMNS}
            self._check(number, values)
            fold = values.pop("fold")
            lesion = Lesion(*(_number(values[name]) for name in schemas.LESION))
            yield SourceFile(
                key, stamp, size, fold=None if fold is None else int(fold),
                label=values["label"], split=values["split"], patient=values["patient"], study=values["study"],
                site=values["site"], plane=values["plane"], sequence=values["sequence"], acquired=values["acquired"],
                labelled=self._has_labels, lesion=None if lesion == Lesion() else lesion,
                issuer=values["issuer"],
            )  # fmt: skip

    def read(self, file: SourceFile) -> bytes:
        """Return the content of a file."""
        return _read(*self._resolve(file.key))

    def read_beside(self, key: str, most: int) -> bytes | None:
        """Return the content of a small file beside a listed one; None if it is larger or cannot be read."""
        return _read_small(*self._resolve(key), most)

    def _state_of(self, key: str) -> tuple[int, str]:
        """Return size and stamp of the file of a row; size -1 and the reason if it cannot be read."""
        fs, path = self._resolve(key)
        try:
            info: Mapping[str, Any] = retrying(fs, lambda: fs.info(path))
        except OSError as error:
            return -1, unusable(error)
        if info.get("type") == "directory":
            return -1, "not_a_file"
        return int(info.get("size") or 0), stamp_of(info)

    def _resolve(self, key: str) -> tuple[AbstractFileSystem, str]:
        if "://" in key:
            return open_url(key)
        return self._fs, key if key.startswith("/") else f"{self._root.rsplit('/', 1)[0]}/{key}"

    def _check(self, number: int, values: Mapping[str, str | None]) -> None:
        def error(name: str, expected: str) -> SourceError:
            return SourceError(f"--source {self.location}: row {number}: {name} is not {expected}")

        if values["fold"] is not None and not re.fullmatch(r"\d{1,6}", values["fold"]):
            raise error("fold", "a whole number of at most 6 digits")
        if values["acquired"] is not None and not _is_day(values["acquired"]):
            raise error("acquired", "a day like 2026-01-31")
        if values["plane"] is not None and values["plane"] not in PLANES:
            raise error("plane", f"one of {', '.join(PLANES)}")
        for name in schemas.LESION:
            low = -1 if name == "lesion_contrast" else 0
            fact = _number(values[name])
            if values[name] is not None and (fact is None or not low <= fact <= 1):
                raise error(name, f"a number between {low} and 1")
            if name == "lesion_area" and fact == 0:
                raise error(name, "above 0; leave the columns of the lesion empty where there is none")


def listing_table(files: list[SourceFile]) -> pa.Table:
    """Return files as a table of ``schemas.LISTING``."""
    rows = [{**vars(file), **lesion_columns(file.lesion)} for file in files]
    return pa.Table.from_pylist(rows, schemas.LISTING)


def lesion_columns(lesion: Lesion | None) -> dict[str, float | None]:
    """Return what is known of a lesion by the columns of ``schemas.LESION``."""
    return dict(zip(schemas.LESION, astuple(lesion or Lesion()), strict=True))


def files_in_listing(table: pa.Table) -> list[SourceFile]:
    """Return the files of a table of ``schemas.LISTING``."""
    files = []
    for row in table.to_pylist():
        # A listing that an earlier version of MRCG wrote lacks the lesion.
        lesion = Lesion(*(row.pop(name, None) for name in schemas.LESION))
        files.append(SourceFile(**row, lesion=None if lesion == Lesion() else lesion))
    return files


def _is_day(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _number(text: str | None) -> float | None:
    """Return the number in a text; None without one. NaN is a number that no range includes."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _read(fs: AbstractFileSystem, path: str) -> bytes:
    data = retrying(fs, lambda: fs.cat_file(path))
    assert isinstance(data, bytes)
    return data


def _read_small(fs: AbstractFileSystem, path: str, most: int) -> bytes | None:
    try:
        info: Mapping[str, Any] = retrying(fs, lambda: fs.info(path))
        return _read(fs, path) if info.get("type") == "file" and int(info.get("size") or 0) <= most else None
    except OSError:
        return None  # it only adds to what the files themselves say


def _folder_facts(key: str) -> tuple[str | None, str | None, int | None]:
    """Return the label, split and fold that a file's folders give."""
    folders = key.split("/")[:-1]
    split = fold = None
    if folders and folders[0].lower() in SPLIT_NAMES:
        split, folders = folders[0], folders[1:]
    elif folders and (match := FOLD.fullmatch(folders[0])):
        fold, folders = int(match[1]), folders[1:]
    # In a BIDS tree the folder of a file is a subject or a session, and no class.
    label = normalised_or_none(folders[0]) if folders and not _BIDS_ENTITY.match(folders[0]) else None
    return label, split, fold


@dataclass(frozen=True)
class Source:
    """Summary of a source of scans.

    Attributes:
        location: URL, or absolute path on the local file system.
        listing_digest: digest of all files with their stamps, sizes and metadata.
        files: number of files.
        size: of all files, in bytes.
        identifying: the source may name patients, judged by file names and manifest columns before any file is read.
    """

    location: str
    listing_digest: str
    files: int
    size: int
    identifying: bool
