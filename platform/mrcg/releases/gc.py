"""Garbage collection: delete the versions that no release, grace period or running job needs.

A file is kept as long as any kept version refers to it, no matter which version wrote it
(`docs/index.md#releases-and-garbage-collection`).
"""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mrcg.errors import IntegrityError, NotFoundError, StoreError
from mrcg.releases.release import read_release, release_numbers
from mrcg.stages.registry import stage_of
from mrcg.storage.attempts import abandoned_attempts, inputs_of_live_attempts
from mrcg.storage.catalog import (
    Key,
    abandoned_writes,
    all_manifests,
    discard_attempts,
    name_of,
    remove_files,
    remove_versions,
    unreferenced_files,
    with_dependencies,
)
from mrcg.storage.manifest import Manifest, kind_of
from mrcg.storage.store import Store

log = logging.getLogger(__name__)

GRACE_DAYS = 14.0


@dataclass(frozen=True)
class Sweep:
    """What was removed or, in a dry run, would be removed: paths relative to the store, and the bytes freed."""

    attempts: tuple[str, ...]
    versions: tuple[str, ...]
    files: tuple[str, ...]
    freed_bytes: int


def sweep(
    store: Store, keep_releases: int | None = None, grace_days: float = GRACE_DAYS, dry_run: bool = False
) -> Sweep:
    """Remove the versions and files that are not in use. If this is killed half-way, run it again.

    Args:
        store: to clean.
        keep_releases: number of newest releases that keep their versions; None keeps those of all releases.
        grace_days: versions younger than this are kept, with all versions that they were made from.
        dry_run: only return what would be removed.

    Raises:
        IntegrityError: a release cannot be read, so the versions that it needs are unknown.
        StoreError: a version that was about to be removed came into use.
    """
    # Before anything else: once this process has claimed them, they look live and would keep the versions they read.
    attempts = abandoned_attempts(store, claim=not dry_run)
    if not dry_run:
        discard_attempts(store, attempts)
    manifests = all_manifests(store)
    in_use = _versions_in_use(store, manifests, keep_releases, grace_days)
    remaining = {key: manifest for key, manifest in manifests.items() if key in in_use}
    removed = [key for key in manifests if key not in in_use]
    files, freed = unreferenced_files(store, remaining, manifests)
    files += abandoned_writes(store)
    if not dry_run:
        # The search takes a while: a version may have been promoted, or a job that reads it started, meanwhile.
        if new := _versions_in_use(store, manifests, keep_releases, grace_days) - in_use:
            raise StoreError(f"{name_of(min(new))} came into use during the search: run the same command again")
        remove_files(store, files)
        remove_versions(store, removed, remaining)
    return Sweep(tuple(attempts), tuple(map(name_of, removed)), tuple(files), freed)


def _versions_in_use(
    store: Store, manifests: Mapping[Key, Manifest | None], keep_releases: int | None, grace_days: float
) -> set[Key]:
    """Return the versions that releases, the grace period or live attempts need, and all damaged versions."""
    numbers = release_numbers(store)
    kept = numbers if keep_releases is None else numbers[len(numbers) - min(keep_releases, len(numbers)) :]
    pins = {pin for number in kept for pin in read_release(store, number).pins.items()}
    in_use = with_dependencies(manifests, pins) | {key for key, manifest in manifests.items() if manifest is None}
    young = [key for key in manifests if _age_days(store, key) < grace_days]
    return in_use | _with_all_inputs(manifests, [*young, *inputs_of_live_attempts(store)])


def _with_all_inputs(manifests: Mapping[Key, Manifest | None], roots: Collection[Key]) -> set[Key]:
    """Return the roots and all versions that they were made from, directly or indirectly, but intermediate ones."""
    keys: set[Key] = set()
    pending = list(roots)
    while pending:
        key = pending.pop()
        if key not in keys and key in manifests:
            keys.add(key)
            manifest = manifests[key]
            inputs = [] if manifest is None else [(kind_of(name), version) for name, version in manifest.inputs.items()]
            pending += [(kind, version) for kind, version in inputs if not stage_of(kind).intermediate]
    return keys


def _age_days(store: Store, key: Key) -> float:
    """Return the age of a version: days since its run started or, without a record, since its manifest was written."""
    try:
        started = float(store.read_json(f"{key[0]}/{key[1]}/run.json")["started"])
    except (NotFoundError, IntegrityError, KeyError, TypeError, ValueError):
        modified = store.modified(f"{key[0]}/{key[1]}/manifest.json")
        started = modified.replace(tzinfo=modified.tzinfo or datetime.UTC).timestamp()
    return (time.time() - started) / 86_400
