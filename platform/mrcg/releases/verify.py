"""Verification of a store: hash all files and compare them with the manifests, and check all releases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mrcg.errors import IntegrityError, NotFoundError
from mrcg.execution.executor import Progress
from mrcg.hashing import sha256_of
from mrcg.releases.release import Release, missing_parts, read_release, release_numbers
from mrcg.stages.registry import artefact_kinds
from mrcg.storage.catalog import Key, dependencies_of, name_of, with_dependencies
from mrcg.storage.manifest import Manifest
from mrcg.storage.store import Store


@dataclass(frozen=True)
class Verified:
    """Result of a verification.

    Attributes:
        versions: number of versions with an intact manifest.
        files: number of files that their manifests list; a shared file counts once.
        size: bytes of these files, by the manifests.
        problems: what is wrong, one line each that ends with a remedy.
        notes: facts that are no problem but may be unexpected, one line each.
    """

    versions: int
    files: int
    size: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def verify_store(store: Store, progress: Progress) -> Verified:
    """Hash the files of all versions and check that all releases are complete.

    A file that several versions refer to is hashed once. Attempts are not verified.
    """
    problems, manifests = [], []
    for kind in artefact_kinds():
        for version in store.versions(kind):
            try:
                manifests.append(store.manifest(kind, version))
            except NotFoundError:
                continue  # removed since it was listed
            except IntegrityError as error:
                problems.append(str(error))
    # A file that several versions refer to belongs to the one that wrote it, as long as that exists.
    files = [(manifest, entry) for manifest in manifests for entry in manifest.files]
    listed = {
        f"{entry.folder or manifest.folder}/{entry.name}": (entry.size, entry.sha256, manifest)
        for manifest, entry in sorted(files, key=lambda file: file[1].folder is None)
    }
    total, done = sum(size for size, _, _ in listed.values()), 0
    for path, (size, digest, manifest) in sorted(listed.items()):
        if (problem := _file_problem(store, path, size, digest)) is not None:
            problems.append(f"{store.url}/{path} {problem}: {_remedy(manifest)}")
        done += size
        progress(done, total, "bytes hashed")
    release_problems, notes = _check_releases(store, {(m.kind, m.version): m for m in manifests})
    return Verified(len(manifests), len(listed), total, (*problems, *release_problems), tuple(notes))


def _remedy(manifest: Manifest) -> str:
    return f"restore the file, or remove {manifest.kind}/{manifest.version} and run the command again"


def _file_problem(store: Store, path: str, size: int, digest: str) -> str | None:
    """Hash a file; return how it differs from its manifest, None if it does not."""
    try:
        with store.fs.open(store.path(path), "rb") as file:
            actual_size, actual_digest = sha256_of(file)
    except FileNotFoundError:
        return "is missing"
    if actual_size != size:
        return f"has {actual_size:,} bytes, but its manifest says {size:,}"
    return None if actual_digest == digest else "does not match its manifest (SHA-256)"


def _check_releases(store: Store, manifests: Mapping[Key, Manifest]) -> tuple[list[str], list[str]]:
    """Return the problems and notes of all releases; ``manifests`` are the intact ones."""
    problems: list[str] = []
    notes: list[str] = []
    numbers = release_numbers(store)
    if numbers != list(range(1, len(numbers) + 1)):
        problems.append(
            f"releases {numbers} are not numbered 1 to {len(numbers)}: restore {store.url}/releases/history"
        )
    for number in numbers:
        try:
            release = read_release(store, number)
        except (IntegrityError, NotFoundError) as error:
            problems.append(str(error))
            continue
        if missing := missing_parts(store, release):
            _add_missing(release, numbers[-1], missing, problems, notes)
        elif number == numbers[-1] and (missing := _missing_dependencies(store, manifests, release)):
            problems.append(
                f"release {number} is current and can serve but not be updated: {', '.join(missing)} is missing; "
                "restore it, or run `mrcg run` again"
            )
    return problems, notes


def _missing_dependencies(store: Store, manifests: Mapping[Key, Manifest], release: Release) -> list[str]:
    """Return the versions that are needed to read those of a release and that the store does not have."""
    readable = with_dependencies(manifests, release.pins.items())
    needed = {dependency for key in readable for dependency in dependencies_of(manifests[key])}
    return [name_of(key) for key in sorted(needed) if not store.has(*key)]


def _add_missing(release: Release, current: int, missing: list[str], problems: list[str], notes: list[str]) -> None:
    """Add the missing versions of a release to the problems or, if it is not the current one, to the notes."""
    if release.number == current:
        problems.append(
            f"release {current} is current and lacks {', '.join(missing)}: restore it, or roll back with "
            "`mrcg releases rollback`"
        )
    else:
        notes.append(f"release {release.number} cannot be rolled back to: {', '.join(missing)} is missing")
