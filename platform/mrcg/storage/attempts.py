"""Attempts: folders in which versions are made before they are visible, held by leases (`docs/design.md#versions`)."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mrcg.errors import AlreadyExistsError, NotFoundError, StoreError
from mrcg.hashing import sha256_of
from mrcg.stages.registry import artefact_kinds
from mrcg.storage.manifest import FileEntry, Manifest
from mrcg.storage.store import Store

log = logging.getLogger(__name__)

LEASE_SECONDS = 120.0
#: Name of an attempt: a UUID.
_IDENT = re.compile(r"[0-9a-f]{32}")


class Attempt:
    """One attempt at making a version. A context manager that renews the lease while it is open.

    ``output`` is the folder whose files become the version. Anything beside it (checkpoints) lets a later run resume
    the work and is removed once the version is published.
    """

    def __init__(self, store: Store, kind: str, version: str, ident: str, lease: int) -> None:
        self.store = store
        self.kind = kind
        self.version = version
        self.folder = f"{kind}/_attempts/{ident}"
        self.output = f"{self.folder}/output"
        self._lease = f"{self.folder}/lease-{lease:04d}.json"
        self._stop = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name=f"lease-{ident[:8]}", daemon=True)

    def __enter__(self) -> Attempt:
        self._renewer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._release_lease()
        if error is not None and self.store.exists(self._lease):
            # Expire the lease now, so that the next run can resume this attempt without waiting.
            self.store.write_bytes(self._lease, _lease_bytes(expires=0.0))

    def _release_lease(self) -> None:
        # Wait for the thread to end: a late renewal would create the removed folder again.
        self._stop.set()
        if self._renewer.is_alive():
            self._renewer.join()

    def _renew(self) -> None:
        while not self._stop.wait(LEASE_SECONDS / 4):
            try:
                self.store.write_bytes(self._lease, _lease_bytes())
            except Exception:  # file systems raise anything, and if this thread ended, the attempt would be lost
                log.warning("lease %s could not be renewed; retrying", self._lease, exc_info=True)

    def write(self, name: str, data: bytes) -> FileEntry:
        """Write an output file and return its entry."""
        self.store.write_bytes(f"{self.output}/{name}", data)
        return FileEntry.of(name, data)

    def entry(self, name: str) -> FileEntry:
        """Return size and hash of an output file that a worker wrote; the file is read as a stream."""
        with self.store.fs.open(self.store.path(f"{self.output}/{name}"), "rb") as file:
            size, digest = sha256_of(file)
        return FileEntry(name=name, size=size, sha256=digest)

    def publish(self, manifest: Manifest) -> Manifest:
        """Make the version visible, unless another attempt has already published it.

        Returns:
            The published manifest: this one, or that of the attempt that was first.

        Raises:
            StoreError: another run has taken over this attempt, or a file of an earlier version was removed.
        """
        assert (manifest.kind, manifest.version) == (self.kind, self.version)
        if _leases(self.store, self.folder)[-1:] != [self._lease.rsplit("/", 1)[-1]]:
            raise StoreError(
                f"{self.folder} was taken over by another run because this run's lease expired: run the command again"
            )
        for entry in manifest.files:
            if entry.folder is not None:
                # The file belongs to an earlier version and stays there.
                if not self.store.exists(f"{entry.folder}/{entry.name}"):
                    raise StoreError(
                        f"{entry.folder}/{entry.name} was removed while {self.kind}/{self.version} was built from it: "
                        "run the command again"
                    )
                continue
            # Not moved: until the manifest exists, a run that resumes this attempt needs all its files.
            self.store.link_or_copy(f"{self.output}/{entry.name}", f"{manifest.folder}/{entry.name}")
        try:
            self.store.create(f"{self.kind}/{self.version}/manifest.json", manifest.to_bytes())
        except AlreadyExistsError:
            winner = self.store.manifest(self.kind, self.version)
            if winner.folder != manifest.folder:
                self.store.remove(manifest.folder)
            log.info("%s/%s was published by another run first", self.kind, self.version)
            manifest = winner
        # Not earlier: until the manifest exists, only the lease protects the files placed above from removal.
        self._release_lease()
        discard(self.store, self.folder)
        return manifest


def begin(store: Store, kind: str, version: str, inputs: Mapping[str, str] | None = None) -> Attempt:
    """Resume an abandoned attempt at a version, or start a new one.

    Args:
        store: that gets the version.
        kind: of the artefact.
        version: to make.
        inputs: versions that it reads, by input name. `mrcg gc` does not remove them while the attempt's lease is live.
            A resumed attempt keeps the inputs that it was started with.
    """
    for ident in _idents(store, kind):
        folder = f"{kind}/_attempts/{ident}"
        description = _description(store, folder)
        if description is None or description["version"] != version or is_live(store, folder):
            continue
        if (number := _claim(store, folder)) is None:
            continue
        log.info("resuming an unfinished attempt at %s/%s", kind, version)
        return Attempt(store, kind, version, ident, number)
    ident = uuid.uuid4().hex
    # The lease first: without one the attempt would look abandoned.
    store.create(f"{kind}/_attempts/{ident}/lease-0000.json", _lease_bytes())
    content = json.dumps({"version": version, "inputs": dict(inputs or {})})
    store.create(f"{kind}/_attempts/{ident}/attempt.json", content.encode())
    return Attempt(store, kind, version, ident, 0)


def discard(store: Store, folder: str) -> None:
    """Remove an attempt. If this is killed half-way, no run resumes what is left of it."""
    store.remove(f"{folder}/attempt.json")
    store.remove(folder)


def is_live(store: Store, folder: str) -> bool:
    """Return whether an attempt is held: its newest lease has not expired and, on this host, its process is alive."""
    leases = _leases(store, folder)
    if not leases:
        return False
    try:
        lease = store.read_json(f"{folder}/{leases[-1]}")
    except NotFoundError:
        return False
    if lease["expires"] < time.time():
        return False
    # On the same host the end of the process ends the lease before it expires.
    return bool(lease["host"] != _host_id() or _process_start(lease["pid"]) == lease["started"])


def abandoned_attempts(store: Store, claim: bool) -> list[str]:
    """Return the folders of attempts without a live lease; ``claim`` takes them over, so no other run resumes them."""
    return [
        folder
        for _, folder in _attempts(store)
        if not is_live(store, folder) and (not claim or _claim(store, folder) is not None)
    ]


def busy_versions(store: Store) -> set[tuple[str, str]]:
    """Return the versions that live attempts are making: files may be placed in their folders at any moment."""
    live = [(kind, _description(store, folder)) for kind, folder in _attempts(store) if is_live(store, folder)]
    return {(kind, description["version"]) for kind, description in live if description is not None}


def inputs_of_live_attempts(store: Store) -> set[tuple[str, str]]:
    """Return the versions that live attempts read."""
    live = [_description(store, folder) for _, folder in _attempts(store) if is_live(store, folder)]
    return {
        (name.partition(":")[0], version)
        for description in live
        if description is not None
        for name, version in description.get("inputs", {}).items()
    }


def _attempts(store: Store) -> list[tuple[str, str]]:
    """Return kind and folder of all attempts."""
    return [(kind, f"{kind}/_attempts/{ident}") for kind in artefact_kinds() for ident in _idents(store, kind)]


def _idents(store: Store, kind: str) -> list[str]:
    """Return the names of a kind's attempts; other files in their folder are ignored."""
    return [name for name in store.listdir(f"{kind}/_attempts") if _IDENT.fullmatch(name)]


def _claim(store: Store, folder: str) -> int | None:
    """Take over an attempt without a live lease: return the number of the new lease, None if another run was first."""
    number = len(_leases(store, folder))
    try:
        store.create(f"{folder}/lease-{number:04d}.json", _lease_bytes())
    except AlreadyExistsError:
        return None
    return number


def _description(store: Store, folder: str) -> dict[str, Any] | None:
    """Return the version and inputs of an attempt, None if it is not fully created or being removed."""
    try:
        description: dict[str, Any] = store.read_json(f"{folder}/attempt.json")
    except NotFoundError:
        return None
    return description


def _leases(store: Store, folder: str) -> Sequence[str]:
    return [name for name in store.listdir(folder) if name.startswith("lease-") and name.endswith(".json")]


def _lease_bytes(expires: float | None = None) -> bytes:
    """Return a lease of this process; ``expires`` is a Unix time, LEASE_SECONDS from now by default."""
    expires = time.time() + LEASE_SECONDS if expires is None else expires
    pid = os.getpid()
    return json.dumps({"host": _host_id(), "pid": pid, "started": _process_start(pid), "expires": expires}).encode()


def _host_id() -> str:
    """Return the host name and the PID namespace: a process id only has a meaning within these two."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {namespace}".strip()


def _process_start(pid: int) -> int | None:
    """Return the start time of a process in clock ticks since boot; None if it does not run, or without /proc.

    The pid alone would not identify the process, because the system reuses pids. A zombie counts as not running.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])
