"""The manifests of a store, the dependencies between versions, and the removal of versions and their files."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence

from mrcg.errors import IntegrityError, NotFoundError
from mrcg.stages.registry import artefact_kinds, stage_of
from mrcg.storage.attempts import busy_versions, discard
from mrcg.storage.manifest import Manifest, kind_of
from mrcg.storage.store import Store

log = logging.getLogger(__name__)

#: Files that a store writes into the folder of a version; other files are never removed.
WRITTEN = re.compile(r"manifest\.json|run\.json|[0-9a-f]{16}/.+")
#: Names of temporary files, which become final names when their writers finish.
UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
#: A temporary file younger than this (seconds) may still be in use by its writer.
WRITING_SECONDS = 86_400.0

#: Kind and version.
Key = tuple[str, str]


def name_of(key: Key) -> str:
    """Return ``kind/version``."""
    return "/".join(key)


def key_of(name: str) -> Key:
    """Return the key of a ``kind/version``."""
    kind, _, version = name.partition("/")
    return kind, version


def discard_attempts(store: Store, attempts: Sequence[str]) -> None:
    """Remove attempts that this process has claimed."""
    for folder in attempts:
        discard(store, folder)
        store.remove_if_empty(folder.rsplit("/", 1)[0])


def remove_unreferenced_files(store: Store) -> None:
    """Remove the files that no version refers to: left by a killed job, or by a removal that was killed."""
    manifests = all_manifests(store)
    remove_files(store, unreferenced_files(store, manifests, manifests)[0])


def all_manifests(store: Store) -> dict[Key, Manifest | None]:
    """Return the manifests of all complete versions, None for a damaged one."""
    manifests: dict[Key, Manifest | None] = {}
    for kind in artefact_kinds():
        for version in store.versions(kind):
            try:
                manifests[kind, version] = store.manifest(kind, version)
            except NotFoundError:
                continue  # removed since it was listed
            except IntegrityError as error:
                log.warning("damaged version is kept: %s", error)
                manifests[kind, version] = None
    return manifests


def with_dependencies(manifests: Mapping[Key, Manifest | None], roots: Iterable[Key]) -> set[Key]:
    """Return the roots and every version that is needed to read them, as far as ``manifests`` has them.

    Not included: what a model was trained on, and the earlier version that an incremental one extends.
    """
    keys: set[Key] = set()
    pending = list(roots)
    while pending:
        key = pending.pop()
        if key in keys or key not in manifests:
            continue
        keys.add(key)
        pending += dependencies_of(manifests[key])
    return keys


def dependencies_of(manifest: Manifest | None) -> list[Key]:
    """Return the versions that are directly needed to read a version; none for a damaged one (None)."""
    if manifest is None or stage_of(manifest.kind).self_contained:
        return []
    inputs = ((kind_of(name), version) for name, version in manifest.inputs.items())
    return [(kind, version) for kind, version in inputs if kind != manifest.kind and not stage_of(kind).intermediate]


def manifests_behind(store: Store, kind: str, version: str) -> dict[str, Manifest]:
    """Return the manifests of a version and of those needed to read it, by kind.

    If two versions of a kind are needed, the one that is nearer to the given version is returned.

    Raises:
        NotFoundError: a manifest is missing.
        IntegrityError: a manifest was changed.
    """
    found = {kind: store.manifest(kind, version)}
    pending = dependencies_of(found[kind])
    while pending:
        needed, pending = pending, []
        for near_kind, near_version in needed:
            if near_kind not in found:
                found[near_kind] = store.manifest(near_kind, near_version)
                pending += dependencies_of(found[near_kind])
    return found


def remove_versions(store: Store, removed: Sequence[Key], remaining: Mapping[Key, Manifest | None]) -> None:
    """Hide versions by deleting their manifests, then delete their files except those that remaining versions use."""
    listed = {key: _listed(store, key) for key in removed}
    for kind, version in removed:
        # The manifest first: a half-removed version must never look complete.
        store.remove(f"{kind}/{version}/manifest.json")
    referenced = _referenced_paths(remaining.values())
    for key in removed:
        folder = name_of(key)
        present = {f"{folder}/{name}" for name in _files_of(store, key)}
        remove_files(store, sorted((present | listed[key]) - referenced))
        prune(store, folder)


def prune(store: Store, folder: str) -> None:
    """Remove the empty folders below a folder, and the folder itself if it is empty then."""
    if store.local:
        for path, _, _ in os.walk(store.path(folder), topdown=False):
            # The system call decides whether a folder is empty: another process may be writing into it.
            with contextlib.suppress(OSError):
                os.rmdir(path)


def _files_of(store: Store, key: Key) -> list[str]:
    """Return the files in the folder of a version, relative to it, that a store has written."""
    return [name for name in store.files(name_of(key)) if WRITTEN.fullmatch(name)]


def _listed(store: Store, key: Key) -> set[str]:
    """Return a version's own files by its manifest: also those behind links to folders, which are not listed."""
    try:
        manifest = store.manifest(*key)
    except (NotFoundError, IntegrityError):
        return set()
    return {f"{manifest.folder}/{entry.name}" for entry in manifest.files if entry.folder is None}


def _referenced_paths(manifests: Iterable[Manifest | None]) -> set[str]:
    return {
        f"{entry.folder or manifest.folder}/{entry.name}"
        for manifest in manifests
        if manifest is not None
        for entry in manifest.files
    }


def unreferenced_files(
    store: Store, remaining: Mapping[Key, Manifest | None], manifests: Mapping[Key, Manifest | None]
) -> tuple[list[str], int]:
    """Find the files that no remaining version refers to.

    Args:
        store: to search.
        remaining: versions that are kept.
        manifests: all versions; the ones that are not in ``remaining`` are about to be removed.

    Returns:
        The unreferenced files of incomplete and of remaining versions: left by a killed job, or by versions that were
        removed. And the bytes freed by removing these files and the unreferenced ones of the versions to be removed.
    """
    referenced, unreferenced = _referenced_paths(remaining.values()), dict[Key, list[str]]()
    for kind in artefact_kinds():
        for version in store.listdir(kind):
            key = (kind, version)
            if version.startswith("_") or (key in manifests and manifests[key] is None):
                continue
            names = _files_of(store, key)
            # manifest.json and run.json lie beside the content folders; no manifest lists them.
            own = [name for name in names if key in remaining and "/" not in name]
            paths = [f"{kind}/{version}/{name}" for name in names if name not in own]
            unreferenced[key] = [path for path in paths if path not in referenced]
    # Checked after the listing: a job that placed a listed file either is still running or has published it by now.
    busy = busy_versions(store)
    new = {key for key in unreferenced if key not in manifests and store.has(*key)}
    unreferenced = {key: paths for key, paths in unreferenced.items() if key not in busy | new}
    freed = sum(store.size(path) for paths in unreferenced.values() for path in paths)
    files = [path for key, paths in unreferenced.items() if key not in manifests or key in remaining for path in paths]
    return files, freed


def abandoned_writes(store: Store) -> list[str]:
    """Return temporary files that killed writers left in a local store; those in attempts are removed with these."""
    if not store.local:
        return []
    paths = []
    for folder, folders, names in os.walk(store.root):
        folders[:] = [name for name in folders if name != "_attempts"]
        for name in names:
            path = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError):  # complete or removed by now
                if UNFINISHED.fullmatch(name) and time.time() - os.lstat(path).st_mtime > WRITING_SECONDS:
                    paths.append(os.path.relpath(path, store.root))
    return sorted(paths)


def remove_files(store: Store, paths: Sequence[str]) -> None:
    """Remove files, and the folders of their versions that become empty."""
    for path in paths:
        store.remove(path)
    for folder in {"/".join(path.split("/")[:2]) for path in paths}:
        prune(store, folder)
