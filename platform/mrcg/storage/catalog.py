"""All manifests of a store, which version needs which, and how versions and their files are removed."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mrcg.errors import IntegrityError, NotFoundError
from mrcg.storage.attempts import busy_versions, discard
from mrcg.storage.manifest import KINDS, Manifest, kind_of
from mrcg.storage.store import Store

log = logging.getLogger(__name__)

#: A file that is younger may still be being written.
WRITING_SECONDS = 86_400.0


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


def discard_attempts(store: Store, attempts: Sequence[str]) -> None:
    """Remove attempts that were claimed."""
    for folder in attempts:
        discard(store, folder)
        store.remove_if_empty(folder.rsplit("/", 1)[0])


def remove_loose(store: Store) -> None:
    """Remove the files of no version: moved in by a killed job, or left by a killed removal."""
    manifests = all_manifests(store)
    remove_files(store, loose_files(store, manifests, manifests)[0])


def all_manifests(store: Store) -> dict[Key, Manifest | None]:
    """Manifests of all complete versions; None for one that is damaged."""
    found: dict[Key, Manifest | None] = {}
    for kind in KINDS:
        for version in store.versions(kind):
            try:
                found[kind, version] = store.manifest(kind, version)
            except NotFoundError:
                continue  # removed since it was listed
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
        waiting += needs(manifest)
    return found


def needs(manifest: Manifest | None) -> list[Key]:
    """What a version needs to be read, beside itself."""
    if manifest is None or manifest.kind in _ALONE:
        return []
    return [(kind_of(n), v) for n, v in manifest.inputs.items() if kind_of(n) != manifest.kind]


def remove_versions(store: Store, gone: Sequence[Key], stay: Mapping[Key, Manifest | None]) -> None:
    """Make versions invisible, then remove their files but those that a version that stays refers to."""
    for kind, version in gone:
        # The manifest goes first: nothing half removed is ever read as whole.
        store.remove(f"{kind}/{version}/manifest.json")
    kept = _referred(stay.values())
    for kind, version in gone:
        remove_files(
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


def loose_files(
    store: Store, stay: Mapping[Key, Manifest | None], manifests: Mapping[Key, Manifest | None]
) -> tuple[list[str], int]:
    """Files of no version that stays: moved in by a killed job, or left when their version went. And bytes freed."""
    kept, found = _referred(stay.values()), dict[Key, list[str]]()
    for kind in KINDS:
        for version in store.listdir(kind):
            key = (kind, version)
            if version.startswith("_") or (key in manifests and manifests[key] is None):
                continue
            names = store.files(f"{kind}/{version}")
            own = [name for name in names if key in stay and "/" not in name]
            paths = [f"{kind}/{version}/{name}" for name in names if name not in own]
            found[key] = [path for path in paths if path not in kept]
    # Asked last: whoever put a file there before it was listed is still at it, or has published it by now.
    busy = busy_versions(store)
    new = {key for key in found if key not in manifests and store.has(*key)}
    found = {key: paths for key, paths in found.items() if key not in busy | new}
    freed = sum(store.size(path) for paths in found.values() for path in paths)
    return [path for key, paths in found.items() if key not in manifests or key in stay for path in paths], freed


def abandoned_writes(store: Store) -> list[str]:
    """What killed writers left beside the files of a folder that they were about to write; attempts go as a whole."""
    if not store.local:
        return []
    root, found = Path(store.root), []
    for path in root.rglob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # it is whole by now
            if "_attempts" not in path.parts and time.time() - path.stat().st_mtime > WRITING_SECONDS:
                found.append(str(path.relative_to(root)))
    return sorted(found)


def remove_files(store: Store, paths: Sequence[str]) -> None:
    """Remove files, and the folders of versions that are empty then."""
    for path in paths:
        store.remove(path)
    for folder in {"/".join(path.split("/")[:2]) for path in paths}:
        prune(store, folder)
