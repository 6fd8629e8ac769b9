"""Attempts: where a version is made before anybody sees it, held by a lease (DESIGN §2)."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mrcg.errors import AlreadyExistsError, NotFoundError, StoreError
from mrcg.storage.manifest import KINDS, FileEntry, Manifest
from mrcg.storage.store import Store

log = logging.getLogger(__name__)

LEASE_SECONDS = 120.0


class Attempt:
    """One try at making a version. A context manager: its lease is renewed while it is open.

    ``output`` is the folder whose files become the version; anything beside it (checkpoints) helps a
    later attempt to go on and is removed once the version is published.
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
            # Let go at once: the next run may take this attempt over without waiting for the lease.
            self.store.write_bytes(self._lease, _lease_bytes(expires=0.0))

    def _release_lease(self) -> None:
        # Joined, not only told: a late renewal would bring the removed folder back.
        self._stop.set()
        if self._renewer.is_alive():
            self._renewer.join()

    def _renew(self) -> None:
        while not self._stop.wait(LEASE_SECONDS / 4):
            try:
                self.store.write_bytes(self._lease, _lease_bytes())
            except Exception:  # whatever a file system raises: a renewer that ends loses the attempt
                log.warning("lease %s could not be renewed, trying again", self._lease, exc_info=True)

    def write(self, name: str, data: bytes) -> FileEntry:
        """Write one output file."""
        self.store.write_bytes(f"{self.output}/{name}", data)
        return FileEntry.of(name, data)

    def entry(self, name: str) -> FileEntry:
        """Size and hash of an output file that a worker wrote, read as a stream."""
        size, state = 0, hashlib.sha256()
        with self.store.fs.open(self.store.path(f"{self.output}/{name}"), "rb") as file:
            while block := file.read(2**22):
                size += len(block)
                state.update(block)
        return FileEntry(name=name, size=size, sha256=state.hexdigest())

    def publish(self, manifest: Manifest) -> Manifest:
        """Make the version visible, or stand back where another attempt was first.

        Returns:
            The manifest that counts: this one, or the earlier one.
        """
        assert (manifest.kind, manifest.version) == (self.kind, self.version)
        if _leases(self.store, self.folder)[-1:] != [self._lease.rsplit("/", 1)[-1]]:
            raise StoreError(f"{self.folder} was taken over by another run while this one slept: run again")
        for entry in manifest.files:
            if entry.folder is not None:
                # It stays where an earlier version put it.
                if not self.store.exists(f"{entry.folder}/{entry.name}"):
                    raise StoreError(
                        f"{entry.folder}/{entry.name} was removed while {self.kind} grew from it: run again"
                    )
                continue
            # Not moved: until the manifest is there, whoever goes on with this attempt needs it whole.
            self.store.place(f"{self.output}/{entry.name}", f"{manifest.folder}/{entry.name}")
        try:
            self.store.create(f"{self.kind}/{self.version}/manifest.json", manifest.to_bytes())
        except AlreadyExistsError:
            winner = self.store.manifest(self.kind, self.version)
            if winner.folder != manifest.folder:
                self.store.remove(manifest.folder)
            log.info("%s/%s was published by another run first", self.kind, self.version)
            manifest = winner
        # Only now: until the manifest is there, the lease keeps others from what was placed.
        self._release_lease()
        discard(self.store, self.folder)
        return manifest


def begin(store: Store, kind: str, version: str, inputs: Mapping[str, str] | None = None) -> Attempt:
    """Take over an attempt at this version that nobody holds any more, or start one.

    Args:
        store: where the version will be.
        kind: of artefact.
        version: to be made.
        inputs: versions that it reads: while somebody holds the attempt nobody may sweep them away.
    """
    for ident in store.listdir(f"{kind}/_attempts"):
        folder = f"{kind}/_attempts/{ident}"
        facts = _facts_of(store, folder)
        if facts is None or facts["version"] != version or is_live(store, folder):
            continue
        if (number := _claim(store, folder)) is None:
            continue
        log.info("going on with an unfinished attempt at %s/%s", kind, version)
        return Attempt(store, kind, version, ident, number)
    ident = uuid.uuid4().hex
    # The lease comes first: an attempt without one would look abandoned.
    store.create(f"{kind}/_attempts/{ident}/lease-0000.json", _lease_bytes())
    about = {"version": version, "inputs": dict(inputs or {})}
    store.create(f"{kind}/_attempts/{ident}/attempt.json", json.dumps(about).encode())
    return Attempt(store, kind, version, ident, 0)


def discard(store: Store, folder: str) -> None:
    """Remove an attempt; killed half way nobody goes on with the rest of it."""
    store.remove(f"{folder}/attempt.json")
    store.remove(folder)


def is_live(store: Store, folder: str) -> bool:
    """Whether somebody still holds an attempt: its newest lease has time left and its process lives."""
    leases = _leases(store, folder)
    if not leases:
        return False
    try:
        lease = store.read_json(f"{folder}/{leases[-1]}")
    except NotFoundError:
        return False
    if lease["expires"] < time.time():
        return False
    # On the same host a dead process needs no waiting.
    return bool(lease["host"] != _host() or _started(lease["pid"]) == lease["started"])


def dead_attempts(store: Store, claim: bool) -> list[str]:
    """Folders of attempts that no live lease holds; ``claim`` keeps others from going on with them."""
    return [
        folder
        for _, folder in _attempts(store)
        if not is_live(store, folder) and (not claim or _claim(store, folder) is not None)
    ]


def busy_versions(store: Store) -> set[tuple[str, str]]:
    """Versions that somebody is making: files may be on their way into them right now."""
    live = [(kind, _facts_of(store, folder)) for kind, folder in _attempts(store) if is_live(store, folder)]
    return {(kind, facts["version"]) for kind, facts in live if facts is not None}


def inputs_of_live_attempts(store: Store) -> set[tuple[str, str]]:
    """Versions that somebody is reading to make others."""
    live = [_facts_of(store, folder) for _, folder in _attempts(store) if is_live(store, folder)]
    return {
        (name.partition(":")[0], version)
        for facts in live
        if facts is not None
        for name, version in facts.get("inputs", {}).items()
    }


def _attempts(store: Store) -> list[tuple[str, str]]:
    """Kind and folder of all attempts."""
    return [(kind, f"{kind}/_attempts/{ident}") for kind in KINDS for ident in store.listdir(f"{kind}/_attempts")]


def _claim(store: Store, folder: str) -> int | None:
    """Take over an attempt whose lease is dead; None where somebody else just did."""
    number = len(_leases(store, folder))
    try:
        store.create(f"{folder}/lease-{number:04d}.json", _lease_bytes())
    except AlreadyExistsError:
        return None
    return number


def _facts_of(store: Store, folder: str) -> dict[str, Any] | None:
    try:
        facts: dict[str, Any] = store.read_json(f"{folder}/attempt.json")
    except NotFoundError:
        return None
    return facts


def _leases(store: Store, folder: str) -> Sequence[str]:
    return [name for name in store.listdir(folder) if name.startswith("lease-") and name.endswith(".json")]


def _lease_bytes(expires: float | None = None) -> bytes:
    until = time.time() + LEASE_SECONDS if expires is None else expires
    pid = os.getpid()
    return json.dumps({"host": _host(), "pid": pid, "started": _started(pid), "expires": until}).encode()


def _host() -> str:
    """This machine and, in a container, its space of process ids: elsewhere a pid means nothing."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return f"{socket.gethostname()} {space}".strip()


def _started(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot, None where there is none or no /proc.

    The pid alone does not do: it is given out again. One that was killed and that nobody waited for is none.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])
