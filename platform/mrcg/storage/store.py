"""A store: one fsspec URL that holds every artefact as a version (DESIGN §2).

::

    <kind>/_attempts/<uuid>/...        work in progress, read by nobody but a resuming stage
    <kind>/<version>/manifest.json     created last and only once: what makes the version visible
    <kind>/<version>/<content>/...     the files, in a folder named by what they hold
    <kind>/<version>/run.json          timings, outside every hash

Two writers of one version therefore never mix their files: equal content meets in one folder, other
content gets another, and the one manifest names the folder that counts.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import functools
import hashlib
import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from mrcg.errors import AlreadyExistsError, IntegrityError, NotFoundError, StoreError
from mrcg.hashing import sha256
from mrcg.storage.cache import Cache
from mrcg.storage.filesystem import HashingFile, open_url
from mrcg.storage.manifest import KINDS, FileEntry, Manifest

log = logging.getLogger(__name__)


class Store:
    """Files below one URL. Paths are relative to it, with ``/``.

    Raises (every method):
        StoreError: the file system refused; NotFoundError where something is absent.
    """

    def __init__(self, url: str) -> None:
        fs, root = open_url(url)
        self.fs: fsspec.AbstractFileSystem = fs
        self.root = root
        self.local = isinstance(fs, LocalFileSystem)
        self.url = self.root if self.local else url.rstrip("/")

    def path(self, relative: str) -> str:
        """Full path of a relative one, as the file system wants it."""
        assert not relative.startswith("/"), relative
        assert ".." not in relative.split("/"), relative
        return f"{self.root}/{relative}"

    def check_writable(self) -> None:
        """Write and remove a small file, so that a job fails before its work and not after.

        Raises:
            StoreError: the store cannot be written.
        """
        probe = f"log/.probe-{uuid.uuid4().hex}"
        self.write_bytes(probe, b"")
        self.remove(probe)

    def exists(self, relative: str) -> bool:
        """Whether there is a file or folder."""
        return bool(self.fs.exists(self.path(relative)))

    def read_bytes(self, relative: str) -> bytes:
        """Whole content of a file."""
        try:
            data = self.fs.cat_file(self.path(relative))
        except FileNotFoundError as error:
            raise NotFoundError(f"{self.url} has no {relative}: `mrcg store ls` shows what is there") from error
        except OSError as error:
            raise StoreError(f"store {self.url} cannot be read at {relative}: {error.strerror or error}") from error
        assert isinstance(data, bytes)
        return data

    def read_json(self, relative: str) -> Any:
        """Content of a JSON file.

        Raises:
            IntegrityError: the file is not JSON.
        """
        try:
            return json.loads(self.read_bytes(relative))
        except ValueError as error:
            raise IntegrityError(f"{self.url}/{relative} is not JSON: restore it or run `mrcg gc`") from error

    def write_bytes(self, relative: str, data: bytes) -> None:
        """Write a file so that a reader sees the old bytes or the new, never a part."""
        path = self.path(relative)
        try:
            if self.local:
                temporary = _write_beside(Path(path), data)
                os.replace(temporary, path)
            else:
                self.fs.pipe_file(path, data)
        except OSError as error:
            raise self._not_writable(error) from error

    @contextlib.contextmanager
    def writer(self, relative: str) -> Iterator[HashingFile]:
        """A binary file to write piece by piece; a local one appears whole when the block ends without an error.

        On an object store a file that was begun and not finished may appear: only attempts are written so.
        """
        path = self.path(relative)
        try:
            if not self.local:
                with self.fs.open(path, "wb") as file:
                    yield HashingFile(file)
                return
            temporary = _beside(Path(path))
            try:
                with temporary.open("wb") as file:
                    yield HashingFile(file)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise self._not_writable(error) from error

    def fetch(self, relative: str, target: Path) -> None:
        """Copy a file of the store to a path of this machine, piece by piece."""
        try:
            self.fs.get_file(self.path(relative), str(target))
        except FileNotFoundError as error:
            raise NotFoundError(f"{self.url} has no {relative}: `mrcg store ls` shows what is there") from error
        except OSError as error:
            raise StoreError(f"store {self.url} cannot be read at {relative}: {error.strerror or error}") from error

    def create(self, relative: str, data: bytes) -> None:
        """Write a file that must not exist; of many writers one wins, whole.

        Raises:
            AlreadyExistsError: somebody else was first.
        """
        path = self.path(relative)
        try:
            if self.local:
                # A link fails where the name is taken, and the name never shows half a file.
                temporary = _write_beside(Path(path), data)
                try:
                    os.link(temporary, path)
                finally:
                    temporary.unlink()
            else:
                self.fs.pipe_file(path, data, mode="create")
        except FileExistsError as error:
            if not self.local and self.read_bytes(relative) == data:
                return  # ours: the store did it, its answer was lost and the try repeated
            raise AlreadyExistsError(f"{self.url}/{relative} exists already") from error
        except OSError as error:
            raise self._not_writable(error) from error

    def listdir(self, relative: str) -> list[str]:
        """Names of the entries of a folder, sorted; empty where there is none."""
        try:
            # Listings are cached by object stores' file systems; another process may have written since.
            self.fs.invalidate_cache(self.path(relative))
            return sorted(str(p).rstrip("/").rsplit("/", 1)[-1] for p in self.fs.ls(self.path(relative), detail=False))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"store {self.url} cannot be listed: {error.strerror or error}") from error

    def files(self, relative: str) -> list[str]:
        """All files below a folder, relative to that folder, sorted; a killed write's leftovers are none."""
        base = self.path(relative).rstrip("/")
        self.fs.invalidate_cache(base)
        names = [str(p)[len(base) + 1 :] for p in self.fs.find(base)]
        # Of a file that is no folder the name is empty.
        return sorted(name for name in names if name and not name.rsplit("/", 1)[-1].startswith("."))

    def isdir(self, relative: str) -> bool:
        """Whether it is a folder."""
        return bool(self.fs.isdir(self.path(relative)))

    def size(self, relative: str) -> int:
        """Bytes of a file; 0 where it is gone."""
        try:
            return int(self.fs.size(self.path(relative)) or 0)
        except FileNotFoundError:
            return 0

    def modified(self, relative: str) -> datetime.datetime:
        """When a file was last written."""
        when: datetime.datetime = self.fs.modified(self.path(relative))
        return when

    def place(self, source: str, target: str) -> None:
        """Show a file at another place, too, whole; whatever was there is replaced. The first place keeps it."""
        try:
            if self.local:
                # A second name for the same bytes.
                temporary = _beside(Path(self.path(source)))
                try:
                    os.link(self.path(source), temporary)
                    Path(self.path(target)).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(temporary, self.path(target))
                finally:
                    # Still there where both were the same file already.
                    temporary.unlink(missing_ok=True)
            else:
                self.fs.cp_file(self.path(source), self.path(target))
        except OSError as error:
            raise self._not_writable(error) from error

    def remove(self, relative: str) -> None:
        """Remove a file or a folder with all below it; absent is fine."""
        path = self.path(relative)
        try:
            if self.local:
                if os.path.isdir(path):
                    shutil.rmtree(path, ignore_errors=False)
                else:
                    os.remove(path)
            else:
                self.fs.rm(path, recursive=True)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._not_writable(error) from error

    def remove_if_empty(self, relative: str) -> None:
        """Remove a folder that holds nothing; object stores have no folders to remove."""
        if self.local:
            # The system call, not a look and a removal: somebody may be writing into it.
            with contextlib.suppress(OSError):
                os.rmdir(self.path(relative))

    def _not_writable(self, error: OSError) -> StoreError:
        reason = error.strerror or str(error)
        return StoreError(
            f"store {self.url} cannot be written ({reason}): name another --store or mend its permissions"
        )

    # Versions ---------------------------------------------------------------------------------

    def has(self, kind: str, version: str) -> bool:
        """Whether a version is complete."""
        return self.exists(f"{kind}/{version}/manifest.json")

    def versions(self, kind: str) -> list[str]:
        """Complete versions of a kind."""
        return [name for name in self.listdir(kind) if not name.startswith("_") and self.has(kind, name)]

    def manifest(self, kind: str, version: str) -> Manifest:
        """The manifest of a version, checked against its own digest.

        Raises:
            NotFoundError: no such version.
            IntegrityError: the manifest was changed after it was written.
        """
        where = f"{kind}/{version}/manifest.json"
        return Manifest.parse(self.read_bytes(where), f"{self.url}/{where}")

    def find(self, artefact: str) -> Manifest:
        """The manifest that a (shortened) version or ``kind/version`` names.

        Raises:
            NotFoundError: no version or more than one fits.
        """
        kind, _, prefix = artefact.rpartition("/")
        kinds = [kind] if kind else list(KINDS)
        hits = [(k, v) for k in kinds for v in self.versions(k) if v.startswith(prefix)]
        if len(hits) != 1:
            what = "no version" if not hits else f"{len(hits)} versions"
            raise NotFoundError(f"{what} in {self.url} named {artefact}: `mrcg store ls` lists them")
        return self.manifest(*hits[0])

    def artefact(self, kind: str, version: str) -> Artefact:
        """A complete version, ready to be read."""
        return Artefact(self, self.manifest(kind, version))

    def record_run(self, manifest: Manifest, timings: dict[str, Any]) -> None:
        """Write ``run.json`` beside a manifest: times are outside every hash."""
        self.write_bytes(f"{manifest.kind}/{manifest.version}/run.json", json.dumps(timings, indent=1).encode())


class Artefact:
    """The files of one complete version."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.store = store
        self.manifest = manifest
        self._entries = {entry.name: entry for entry in manifest.files}
        # A folder on this machine needs no copy of itself.
        self._cache = None if store.local else Cache.of_this_node()

    def names(self, prefix: str = "") -> list[str]:
        """Names of the files below a prefix, sorted."""
        return sorted(f.name for f in self.manifest.files if f.name.startswith(prefix))

    def entry(self, name: str) -> FileEntry:
        """Size and hash of a file.

        Raises:
            NotFoundError: the version has no such file.
        """
        if name not in self._entries:
            raise NotFoundError(f"{self.manifest.kind}/{self.manifest.version} has no file {name}")
        return self._entries[name]

    def shared(self, name: str) -> FileEntry:
        """The entry by which another version refers to a file of this one, without a copy."""
        entry = self.entry(name)
        return entry.model_copy(update={"folder": entry.folder or self.manifest.folder})

    def relative(self, name: str) -> str:
        """Path of a file, relative to the store."""
        entry = self.entry(name)
        return f"{entry.folder or self.manifest.folder}/{entry.name}"

    def read_bytes(self, name: str) -> bytes:
        """Content of a file, checked against the manifest's hash.

        Raises:
            IntegrityError: the bytes are not those that were published.
        """
        entry = self.entry(name)
        if self._cache is not None and (kept := self._cache.get(entry.sha256)) is not None:
            return kept
        data = self.store.read_bytes(self.relative(name))
        if len(data) != entry.size or sha256(data) != entry.sha256:
            raise self._damaged(name)
        if self._cache is not None:
            self._cache.put(entry.sha256, data)
        return data

    def on_disk(self, name: str) -> Path:
        """A file as a path of this machine, its bytes checked: for what is memory-mapped and not read whole.

        Of a remote store it is the node cache's copy, or a temporary file that goes with this process.

        Raises:
            IntegrityError: the bytes are not those that were published.
        """
        entry = self.entry(name)
        if self.store.local:
            path = Path(self.store.path(self.relative(name)))
            self._check(name, path)
            return path
        if self._cache is not None and (kept := self._cache.find(entry.sha256)) is not None:
            return kept
        folder = self._cache.folder if self._cache is not None and entry.size <= self._cache.max_bytes else spill()
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
                whole = os.fstat(file.fileno()).st_size == entry.size
                whole = whole and hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
        except FileNotFoundError as error:
            raise self._damaged(name) from error
        if not whole:
            raise self._damaged(name)

    def _damaged(self, name: str) -> IntegrityError:
        return IntegrityError(
            f"{self.store.url}/{self.relative(name)} does not match its manifest (SHA-256): "
            f"restore the file, or remove {self.manifest.kind}/{self.manifest.version} and run again"
        )

    def each(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Names and checked contents of the files below a prefix."""
        for name in self.names(prefix):
            yield name, self.read_bytes(name)


@functools.cache
def spill() -> Path:
    """A folder for what no cache may keep; it goes when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="mrcg-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _beside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"


def _write_beside(path: Path, data: bytes) -> Path:
    temporary = _beside(path)
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return temporary
