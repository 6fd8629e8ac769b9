"""Everything in a store, hashed again: is every byte the one that was published (DESIGN §2)?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mrcg.errors import IntegrityError, NotFoundError
from mrcg.execution.executor import Progress
from mrcg.releases.release import Release, missing_parts, read_release, release_numbers
from mrcg.storage.catalog import Key, chain, name_of, needs
from mrcg.storage.manifest import KINDS, Manifest
from mrcg.storage.store import Store

BLOCK = 2**22


@dataclass(frozen=True)
class Verified:
    """What was looked at, what is wrong, and what is worth knowing.

    ``problems`` are one line each, with the way out. ``notes`` say what is as it should be, though it may surprise.
    """

    versions: int
    files: int
    size: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def verify_store(store: Store, progress: Progress) -> Verified:
    """Hash every file of every version and follow every release.

    A file that several versions refer to is hashed once. Attempts are nobody's promise and are not looked at.
    """
    problems, manifests = [], []
    for kind in KINDS:
        for version in store.versions(kind):
            try:
                manifests.append(store.manifest(kind, version))
            except NotFoundError:
                continue  # swept since it was listed
            except IntegrityError as error:
                problems.append(str(error))
    wanted = {
        f"{entry.folder or manifest.folder}/{entry.name}": (entry.size, entry.sha256, manifest)
        for manifest in manifests
        for entry in manifest.files
    }
    total, done = sum(size for size, _, _ in wanted.values()), 0
    for path, (size, digest, manifest) in sorted(wanted.items()):
        if (wrong := _wrong(store, path, size, digest)) is not None:
            problems.append(f"{store.url}/{path} {wrong}: {_way_out(manifest)}")
        done += size
        progress(done, total, "bytes hashed")
    wrong_releases, notes = _releases(store, {(one.kind, one.version): one for one in manifests})
    return Verified(len(manifests), len(wanted), total, (*problems, *wrong_releases), tuple(notes))


def _way_out(manifest: Manifest) -> str:
    return f"restore the file, or remove {manifest.kind}/{manifest.version} and run again"


def _wrong(store: Store, path: str, size: int, digest: str) -> str | None:
    state, found = hashlib.sha256(), 0
    try:
        for block in _blocks(store, path):
            state.update(block)
            found += len(block)
    except FileNotFoundError:
        return "is gone"
    if found != size:
        return f"has {found:,} bytes, its manifest says {size:,}"
    return None if state.hexdigest() == digest else "does not match its manifest (SHA-256)"


def _blocks(store: Store, path: str) -> Iterator[bytes]:
    with store.fs.open(store.path(path), "rb") as file:
        while block := file.read(BLOCK):
            yield block


def _releases(store: Store, manifests: Mapping[Key, Manifest]) -> tuple[list[str], list[str]]:
    problems: list[str] = []
    notes: list[str] = []
    numbers = release_numbers(store)
    if numbers != list(range(1, len(numbers) + 1)):
        problems.append(f"releases {numbers} are not 1 to {len(numbers)}: restore {store.url}/releases/history")
    for number in numbers:
        try:
            release = read_release(store, number)
        except (IntegrityError, NotFoundError) as error:
            problems.append(str(error))
            continue
        if missing := missing_parts(store, release):
            _say(release, numbers[-1], missing, problems, notes)
        elif number == numbers[-1] and (missing := _unreadable(store, manifests, release)):
            problems.append(
                f"release {number} is current and serves, but nothing can grow from it: {', '.join(missing)} is gone; "
                "restore it, or run `mrcg run` again"
            )
    return problems, notes


def _unreadable(store: Store, manifests: Mapping[Key, Manifest], release: Release) -> list[str]:
    """What the parts of a release were made from and the store has no more, though it should."""
    wanted = {need for key in chain(manifests, release.pins.items()) for need in needs(manifests[key])}
    return [name_of(key) for key in sorted(wanted) if not store.has(*key)]


def _say(release: Release, current: int, missing: list[str], problems: list[str], notes: list[str]) -> None:
    if release.number == current:
        problems.append(
            f"release {current} is current and lacks {', '.join(missing)}: restore it, or roll back with "
            "`mrcg releases rollback`"
        )
    else:
        notes.append(f"release {release.number} cannot be rolled back to: {', '.join(missing)} is gone")
