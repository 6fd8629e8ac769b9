"""A store: one fsspec URL that holds all artefacts as versions (`docs/design.md#versions`).

::

    <kind>/_attempts/<uuid>/...        work in progress, read only by a stage that resumes it
    <kind>/<version>/manifest.json     created last and only once; makes the version visible
    <kind>/<version>/<content>/...     the files, in a folder named by a digest of their contents
    <kind>/<version>/run.json          timings, not part of any hash

So two writers of one version never mix their files: equal content has the same folder, different content another one,
and the manifest names the folder that is valid.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from mrcg.errors import AlreadyExistsError, IntegrityError, NotFoundError, StoreError
from mrcg.hashing import sha256
from mrcg.stages.registry import artefact_kinds
from mrcg.storage.cache import Cache, temp_dir
from mrcg.storage.filesystem import HashingFile, open_url, remove_local, temporary_path, write_temporary
from mrcg.storage.manifest import FileEntry, Manifest

log = logging.getLogger(__name__)


class Store:
    """The files below one URL. Paths are relative to it and use ``/``.

    Raises (every method):
        StoreError: the file system failed; NotFoundError if a file does not exist.
    """

    def __init__(self, url: str) -> None:
        fs, root = open_url(url)
        self.fs: fsspec.AbstractFileSystem = fs
        self.root = root
        self.local = isinstance(fs, LocalFileSystem)
        self.url = self.root if self.local else url.rstrip("/")

    def path(self, relative: str) -> str:
        """Return the full path of a relative path, in the form that the file system takes."""
        assert not relative.startswith("/"), relative
        assert ".." not in relative.split("/"), relative
        return f"{self.root}/{relative}"

    def check_writable(self) -> None:
        """Write and remove an empty file, so that a job with a read-only store fails before its work and not after.

        Raises:
            StoreError: the store cannot be written.
        """
        probe = f"log/.probe-{uuid.uuid4().hex}"
        self.write_bytes(probe, b"")
        self.remove(probe)

    def exists(self, relative: str) -> bool:
        """Return whether a file or folder exists."""
        return bool(self.fs.exists(self.path(relative)))

    def read_bytes(self, relative: str) -> bytes:
        """Return the content of a file."""
        try:
            data = self.fs.cat_file(self.path(relative))
        except FileNotFoundError as error:
            raise NotFoundError(f"{self.url} has no {relative}: `mrcg store ls` lists the versions") from error
        except OSError as error:
            raise StoreError(f"store {self.url} cannot be read at {relative}: {error.strerror or error}") from error
        assert isinstance(data, bytes)
        return data

    def read_json(self, relative: str) -> Any:
        """Return the value in a JSON file.

        Raises:
            IntegrityError: the file is not JSON.
        """
        try:
            return json.loads(self.read_bytes(relative))
        except ValueError as error:
            raise IntegrityError(f"{self.url}/{relative} is not JSON: restore it or run `mrcg gc`") from error

    def write_bytes(self, relative: str, data: bytes) -> None:
        """Write or replace a file atomically: readers see the old or the new content, never a part."""
        path = self.path(relative)
        try:
            if self.local:
                temporary = write_temporary(Path(path), data)
                os.replace(temporary, path)
            else:
                self.fs.pipe_file(path, data)
        except OSError as error:
            raise self._not_writable(error) from error

    @contextlib.contextmanager
    def writer(self, relative: str) -> Iterator[HashingFile]:
        """Open a binary file to write it piece by piece.

        In a local store the file appears, complete, when the block ends without an error. In an object store an
        incomplete file may appear, so use this only for files of attempts.
        """
        opened = self.staged(relative) if self.local else contextlib.nullcontext(self.path(relative))
        try:
            with opened as path, open(path, "wb") if self.local else self.fs.open(path, "wb") as file:
                yield HashingFile(file)
        except OSError as error:
            raise self._not_writable(error) from error

    @contextlib.contextmanager
    def staged(self, relative: str) -> Iterator[Path]:
        """Return a path on this machine, for a library that writes files itself.

        The file appears in the store, complete, when the block ends without an error.
        """
        temporary = temporary_path(Path(self.path(relative)) if self.local else temp_dir() / "file")
        try:
            yield temporary
            if self.local:
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, self.path(relative))
            else:
                self.fs.put_file(str(temporary), self.path(relative))
        except OSError as error:
            raise self._not_writable(error) from error
        finally:
            temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def local_path(self, relative: str) -> Iterator[Path]:
        """Return a path on this machine to read a file from, for as long as the block lasts."""
        if self.local:
            yield Path(self.path(relative))
            return
        temporary = temporary_path(temp_dir() / "file")
        try:
            self.fetch(relative, temporary)
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def fetch(self, relative: str, target: Path) -> None:
        """Download a file to a path on this machine, piece by piece."""
        try:
            self.fs.get_file(self.path(relative), str(target))
        except FileNotFoundError as error:
            raise NotFoundError(f"{self.url} has no {relative}: `mrcg store ls` lists the versions") from error
        except OSError as error:
            raise StoreError(f"store {self.url} cannot be read at {relative}: {error.strerror or error}") from error

    def create(self, relative: str, data: bytes) -> None:
        """Create a file that must not exist yet. If several writers try, exactly one succeeds, with its whole content.

        Raises:
            AlreadyExistsError: the file exists, with other content than ``data`` if the store is remote.
        """
        path = self.path(relative)
        try:
            if self.local:
                # A link fails if the name exists, and never shows an incomplete file under that name.
                temporary = write_temporary(Path(path), data)
                try:
                    os.link(temporary, path)
                finally:
                    temporary.unlink()
            else:
                self.fs.pipe_file(path, data, mode="create")
        except FileExistsError as error:
            if not self.local and self.read_bytes(relative) == data:
                return  # our own write: the store's answer was lost and the request retried
            raise AlreadyExistsError(f"{self.url}/{relative} already exists") from error
        except OSError as error:
            raise self._not_writable(error) from error

    def listdir(self, relative: str) -> list[str]:
        """Return the sorted names in a folder, without hidden ones; empty if the folder does not exist."""
        try:
            # fsspec caches the listings of object stores; another process may have written since.
            self.fs.invalidate_cache(self.path(relative))
            paths = self.fs.ls(self.path(relative), detail=False)
            names = [str(path).rstrip("/").rsplit("/", 1)[-1] for path in paths]
            # Hidden files are unfinished writes, or what a desktop leaves in every folder.
            return sorted(name for name in names if not name.startswith("."))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"store {self.url} cannot be listed: {error.strerror or error}") from error

    def files(self, relative: str) -> list[str]:
        """Return all files below a folder, sorted and relative to it, without hidden ones.

        Links to folders are not followed: what they point to may belong to another program.
        """
        base = self.path(relative).rstrip("/")
        self.fs.invalidate_cache(base)
        paths: Iterable[str]
        if self.local:
            # os.walk() skips folders that disappear meanwhile.
            paths = (os.path.join(folder, name) for folder, _, names in os.walk(base) for name in names)
        else:
            paths = map(str, self.fs.find(base))
        names = [path[len(base) + 1 :] for path in paths]
        # If the path is a file, find() returns it and its relative name is empty.
        return sorted(name for name in names if name and not name.rsplit("/", 1)[-1].startswith("."))

    def isdir(self, relative: str) -> bool:
        """Return whether a path is a folder."""
        return bool(self.fs.isdir(self.path(relative)))

    def size(self, relative: str) -> int:
        """Return the size of a file in bytes; 0 if it does not exist."""
        try:
            return int(self.fs.size(self.path(relative)) or 0)
        except FileNotFoundError:
            return 0

    def modified(self, relative: str) -> datetime.datetime:
        """Return when a file was last written."""
        modified: datetime.datetime = self.fs.modified(self.path(relative))
        return modified

    def link_or_copy(self, source: str, target: str) -> None:
        """Make a file also available at another path and replace what is there: a hard link locally, else a copy."""
        try:
            if self.local:
                temporary = temporary_path(Path(self.path(source)))
                try:
                    os.link(self.path(source), temporary)
                    Path(self.path(target)).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(temporary, self.path(target))
                finally:
                    # os.replace() leaves it where source and target were already the same file.
                    temporary.unlink(missing_ok=True)
            else:
                self.fs.cp_file(self.path(source), self.path(target))
        except OSError as error:
            raise self._not_writable(error) from error

    def remove(self, relative: str) -> None:
        """Remove a file, or a folder with everything below it; do nothing if it does not exist."""
        path = self.path(relative)
        try:
            if self.local:
                remove_local(path)
            else:
                self.fs.rm(path, recursive=True)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._not_writable(error) from error

    def remove_if_empty(self, relative: str) -> None:
        """Remove a folder of a local store if it is empty; object stores have no folders."""
        if self.local:
            # rmdir() checks and removes in one step: another process may be writing into the folder.
            with contextlib.suppress(OSError):
                os.rmdir(self.path(relative))

    def _not_writable(self, error: OSError) -> StoreError:
        reason = error.strerror or str(error)
        return StoreError(f"store {self.url} cannot be written ({reason}): fix its permissions or use another --store")

    # Versions ---------------------------------------------------------------------------------

    def has(self, kind: str, version: str) -> bool:
        """Return whether a complete version exists."""
        return self.exists(f"{kind}/{version}/manifest.json")

    def versions(self, kind: str) -> list[str]:
        """Return the complete versions of a kind, sorted."""
        return [name for name in self.listdir(kind) if not name.startswith("_") and self.has(kind, name)]

    def manifest(self, kind: str, version: str) -> Manifest:
        """Return the manifest of a version, checked against its own digest.

        Raises:
            NotFoundError: the version does not exist.
            IntegrityError: the manifest was changed after it was written.
        """
        path = f"{kind}/{version}/manifest.json"
        return Manifest.parse(self.read_bytes(path), f"{self.url}/{path}")

    def find(self, artefact: str) -> Manifest:
        """Return the manifest of the version given as ``version`` or ``kind/version``; the version may be a prefix.

        Raises:
            NotFoundError: no version matches, or more than one.
        """
        kind, _, prefix = artefact.rpartition("/")
        kinds = [kind] if kind else list(artefact_kinds())
        matches = [(k, v) for k in kinds for v in self.versions(k) if v.startswith(prefix)]
        if len(matches) != 1:
            number = "no version" if not matches else f"{len(matches)} versions"
            raise NotFoundError(f"{number} in {self.url} named {artefact}: `mrcg store ls` lists the versions")
        return self.manifest(*matches[0])

    def artefact(self, kind: str, version: str) -> Artefact:
        """Open a complete version for reading."""
        return Artefact(self, self.manifest(kind, version))

    def record_run(self, manifest: Manifest, timings: dict[str, Any]) -> None:
        """Write the timings of a run to ``run.json`` beside the manifest, so that they are not part of any hash."""
        self.write_bytes(f"{manifest.kind}/{manifest.version}/run.json", json.dumps(timings, indent=1).encode())


class Artefact:
    """The files of one complete version."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.store = store
        self.manifest = manifest
        self._entries = {entry.name: entry for entry in manifest.files}
        # The files of a local store are not cached.
        self._cache = None if store.local else Cache.of_this_node()

    def names(self, prefix: str = "") -> list[str]:
        """Return the sorted names of the files that start with a prefix."""
        return sorted(f.name for f in self.manifest.files if f.name.startswith(prefix))

    def entry(self, name: str) -> FileEntry:
        """Return the manifest entry of a file.

        Raises:
            NotFoundError: the version has no such file.
        """
        if name not in self._entries:
            raise NotFoundError(f"{self.manifest.kind}/{self.manifest.version} has no file {name}")
        return self._entries[name]

    def reference(self, name: str) -> FileEntry:
        """Return the entry with which another version's manifest refers to a file of this one instead of copying it."""
        entry = self.entry(name)
        return entry.model_copy(update={"folder": entry.folder or self.manifest.folder})

    def relative(self, name: str) -> str:
        """Return the path of a file, relative to the store."""
        entry = self.entry(name)
        return f"{entry.folder or self.manifest.folder}/{entry.name}"

    def read_bytes(self, name: str) -> bytes:
        """Return the content of a file, checked against the manifest's hash.

        Raises:
            IntegrityError: the bytes differ from those that were published.
        """
        entry = self.entry(name)
        if self._cache is not None and (cached := self._cache.get(entry.sha256)) is not None:
            return cached
        data = self.store.read_bytes(self.relative(name))
        if len(data) != entry.size or sha256(data) != entry.sha256:
            raise self._damaged(name)
        if self._cache is not None:
            self._cache.put(entry.sha256, data)
        return data

    def on_disk(self, name: str) -> Path:
        """Return a path on this machine to a file, checked against the manifest's hash, for example to memory-map it.

        For a remote store this is the copy in the node cache or, if the cache is off or too small for it, a temporary
        file that is removed when this process ends.

        Raises:
            IntegrityError: the bytes differ from those that were published.
        """
        entry = self.entry(name)
        if self.store.local:
            path = Path(self.store.path(self.relative(name)))
            self._check(name, path)
            return path
        if self._cache is not None and (cached := self._cache.find(entry.sha256)) is not None:
            return cached
        folder = self._cache.folder if self._cache is not None and entry.size <= self._cache.max_bytes else temp_dir()
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
                intact = os.fstat(file.fileno()).st_size == entry.size
                intact = intact and hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
        except FileNotFoundError as error:
            raise self._damaged(name) from error
        if not intact:
            raise self._damaged(name)

    def _damaged(self, name: str) -> IntegrityError:
        return IntegrityError(
            f"{self.store.url}/{self.relative(name)} does not match its manifest (SHA-256): "
            f"restore the file, or remove {self.manifest.kind}/{self.manifest.version} and run the command again"
        )

    def iter_files(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Yield name and checked content of each file that starts with a prefix."""
        for name in self.names(prefix):
            yield name, self.read_bytes(name)
