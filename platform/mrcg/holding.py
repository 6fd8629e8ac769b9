"""What is held, and what may go: versions that no release, no grace period and no running job needs (DESIGN §2).

A file stays as long as any version that stays refers to it, whichever version wrote it.
"""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mrcg.attempt import busy_versions, dead_attempts, inputs_of_live_attempts
from mrcg.errors import IntegrityError, NotFoundError
from mrcg.manifest import KINDS, Manifest
from mrcg.release import read_release, release_numbers
from mrcg.stages import kind_of
from mrcg.store import Store

log = logging.getLogger(__name__)

GRACE_DAYS = 14.0
#: Kinds that serve without what they were made from: weights stand alone, pixels do.
_ALONE = ("corpus", "encoders", "rerankers")

#: Kind and version.
Key = tuple[str, str]


def name_of(key: Key) -> str:
    """``kind/version``."""
    return "/".join(key)


def key_of(name: str) -> Key:
    """The key that ``name_of`` wrote."""
    kind, _, version = name.partition("/")
    return kind, version


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
    """
    attempts = dead_attempts(store, claim=not dry_run)
    manifests = all_manifests(store)
    held = _held(store, manifests, keep_releases, grace_days)
    stay = {key: one for key, one in manifests.items() if key in held}
    gone = [key for key in manifests if key not in held]
    files, freed = _loose_files(store, stay, manifests)
    if not dry_run:
        for folder in attempts:
            store.remove(folder)
            store.remove_if_empty(folder.rsplit("/", 1)[0])
        remove_versions(store, gone, stay)
        _remove_files(store, files)
    return Sweep(tuple(attempts), tuple(map(name_of, gone)), tuple(files), freed)


def all_manifests(store: Store) -> dict[Key, Manifest | None]:
    """Manifests of all complete versions; None for one that is damaged."""
    found: dict[Key, Manifest | None] = {}
    for kind in KINDS:
        for version in store.versions(kind):
            try:
                found[kind, version] = store.manifest(kind, version)
            except IntegrityError as error:
                log.warning("left alone: %s", error)
                found[kind, version] = None
    return found


def chain(manifests: Mapping[Key, Manifest | None], roots: Iterable[Key]) -> set[Key]:
    """Roots and what they need to be read: not what weights learned from, nor what a version grew from."""
    found: set[Key] = set()
    waiting = list(roots)
    while waiting:
        key = waiting.pop()
        manifest = manifests.get(key)
        if key in found or key not in manifests:
            continue
        found.add(key)
        if manifest is not None and key[0] not in _ALONE:
            waiting += [(kind_of(n), v) for n, v in manifest.inputs.items() if kind_of(n) != key[0]]
    return found


def remove_versions(store: Store, gone: Sequence[Key], stay: Mapping[Key, Manifest | None]) -> None:
    """Make versions invisible, then remove their files but those that a version that stays refers to."""
    for kind, version in gone:
        # The manifest goes first: nothing half removed is ever read as whole.
        store.remove(f"{kind}/{version}/manifest.json")
    kept = _referred(stay.values())
    for kind, version in gone:
        _remove_files(
            store,
            [f"{kind}/{version}/{n}" for n in store.files(f"{kind}/{version}") if f"{kind}/{version}/{n}" not in kept],
        )
        prune(store, f"{kind}/{version}")


def prune(store: Store, folder: str) -> None:
    """Remove empty folders below and at a place."""
    if store.local:
        for name in store.listdir(folder):
            if store.isdir(f"{folder}/{name}"):
                prune(store, f"{folder}/{name}")
        store.remove_if_empty(folder)


def _referred(manifests: Iterable[Manifest | None]) -> set[str]:
    return {
        f"{entry.folder or manifest.folder}/{entry.name}"
        for manifest in manifests
        if manifest is not None
        for entry in manifest.files
    }


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
    except (NotFoundError, IntegrityError, KeyError):
        modified = store.modified(f"{key[0]}/{key[1]}/manifest.json")
        started = modified.replace(tzinfo=modified.tzinfo or datetime.UTC).timestamp()
    return (time.time() - started) / 86_400


def _loose_files(
    store: Store, stay: Mapping[Key, Manifest | None], manifests: Mapping[Key, Manifest | None]
) -> tuple[list[str], int]:
    """Files of no version that stays: moved in by a killed job, or left when their version went. And bytes freed."""
    kept, busy, found, freed = _referred(stay.values()), busy_versions(store), [], 0
    for kind in KINDS:
        for version in store.listdir(kind):
            key = (kind, version)
            if version.startswith("_") or key in busy or (key in manifests and manifests[key] is None):
                continue
            for name in store.files(f"{kind}/{version}"):
                path = f"{kind}/{version}/{name}"
                if path in kept or (key in stay and "/" not in name):
                    continue
                freed += store.size(path)
                if key not in manifests or key in stay:
                    found.append(path)
    return found, freed


def _remove_files(store: Store, paths: Sequence[str]) -> None:
    for path in paths:
        store.remove(path)
    for folder in {"/".join(path.split("/")[:2]) for path in paths}:
        prune(store, folder)
