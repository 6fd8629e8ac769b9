"""What is held, and what may go: versions that no release, no grace period and no running job needs (DESIGN §2).

A file stays as long as any version that stays refers to it, whichever version wrote it.
"""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mrcg.errors import IntegrityError, NotFoundError, StoreError
from mrcg.releases.release import read_release, release_numbers
from mrcg.storage.attempts import dead_attempts, inputs_of_live_attempts
from mrcg.storage.catalog import (
    Key,
    abandoned_writes,
    all_manifests,
    chain,
    discard_attempts,
    loose_files,
    name_of,
    remove_files,
    remove_versions,
)
from mrcg.storage.manifest import Manifest, kind_of
from mrcg.storage.store import Store

log = logging.getLogger(__name__)

GRACE_DAYS = 14.0


@dataclass(frozen=True)
class Sweep:
    """What was (or would be) removed, relative to the store."""

    attempts: tuple[str, ...]
    versions: tuple[str, ...]
    files: tuple[str, ...]
    freed_bytes: int


def sweep(
    store: Store, keep_releases: int | None = None, grace_days: float = GRACE_DAYS, dry_run: bool = False
) -> Sweep:
    """Remove what nobody holds; killed half way, it is simply run again.

    Args:
        store: to be swept.
        keep_releases: the newest so many releases hold their parts; None: all.
        grace_days: versions younger than this stay, with all they were made from.
        dry_run: only say.

    Raises:
        IntegrityError: a release cannot be read, so nobody knows what it holds.
        StoreError: somebody took up a version that was about to go.
    """
    # They go before anything is looked at: claimed by this process they seem alive, and to hold what they read.
    attempts = dead_attempts(store, claim=not dry_run)
    if not dry_run:
        discard_attempts(store, attempts)
    manifests = all_manifests(store)
    held = _held(store, manifests, keep_releases, grace_days)
    stay = {key: one for key, one in manifests.items() if key in held}
    gone = [key for key in manifests if key not in held]
    files, freed = loose_files(store, stay, manifests)
    files += abandoned_writes(store)
    if not dry_run:
        # Looking takes its time, and what was promoted or begun meanwhile must not go.
        if new := _held(store, manifests, keep_releases, grace_days) - held:
            raise StoreError(f"{name_of(min(new))} was taken up while it was found to be old: run the same again")
        remove_files(store, files)
        remove_versions(store, gone, stay)
    return Sweep(tuple(attempts), tuple(map(name_of, gone)), tuple(files), freed)


def _held(
    store: Store, manifests: Mapping[Key, Manifest | None], keep_releases: int | None, grace_days: float
) -> set[Key]:
    numbers = release_numbers(store)
    kept = numbers if keep_releases is None else numbers[len(numbers) - min(keep_releases, len(numbers)) :]
    pins = {pin for number in kept for pin in read_release(store, number).pins.items()}
    held = chain(manifests, pins) | {key for key, one in manifests.items() if one is None}
    young = [key for key in manifests if _age_days(store, key) < grace_days]
    return held | _whole(manifests, [*young, *inputs_of_live_attempts(store)])


def _whole(manifests: Mapping[Key, Manifest | None], roots: Collection[Key]) -> set[Key]:
    """Roots and everything that they were made from."""
    found: set[Key] = set()
    waiting = list(roots)
    while waiting:
        key = waiting.pop()
        if key not in found and key in manifests:
            found.add(key)
            manifest = manifests[key]
            waiting += [] if manifest is None else [(kind_of(n), v) for n, v in manifest.inputs.items()]
    return found


def _age_days(store: Store, key: Key) -> float:
    """Days since a version was made; without a record of its run since its manifest was written."""
    try:
        started = float(store.read_json(f"{key[0]}/{key[1]}/run.json")["started"])
    except (NotFoundError, IntegrityError, KeyError, TypeError, ValueError):
        modified = store.modified(f"{key[0]}/{key[1]}/manifest.json")
        started = modified.replace(tzinfo=modified.tzinfo or datetime.UTC).timestamp()
    return (time.time() - started) / 86_400
