"""The manifest: what makes a version visible and explains it (DESIGN §2)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mrcg import __version__
from mrcg.errors import IntegrityError
from mrcg.hashing import digest, sha256

#: Kinds of artefact in pipeline order (trials: of `mrcg reproduce`), and the schema number of each: it is part of every
#: version.
KINDS: Mapping[str, int] = {
    "corpus": 3,
    "splits": 3,
    "encoders": 2,
    "embeddings": 1,
    "indexes": 2,
    "graphs": 2,
    "rerankers": 2,
    "reports": 3,
    "trials": 1,
}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Frozen):
    """One file: its name below the version's content folder, bytes and SHA-256.

    ``folder`` is the content folder of an earlier version where the file stays that one's: a corpus that grows
    does not copy what it had.
    """

    name: str
    size: int
    sha256: str
    folder: str | None = None

    @classmethod
    def of(cls, name: str, data: bytes) -> FileEntry:
        """The entry of a file with this content."""
        return cls(name=name, size=len(data), sha256=sha256(data))


class Manifest(_Frozen):
    """Everything that explains a version. Times and hosts are not in it: equal work gives equal bytes."""

    kind: str
    version: str
    schema_number: int
    code_version: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    counts: dict[str, Any]
    folder: str
    files: tuple[FileEntry, ...]

    @property
    def content(self) -> str:
        """Digest of the names and contents of all files."""
        return content_digest(self.files)

    def to_bytes(self) -> bytes:
        """JSON with a digest over all of it, so that an edit by hand shows."""
        body = self.model_dump(mode="json")
        return json.dumps({**body, "digest": digest(body, 64)}, indent=1, sort_keys=True).encode()

    @classmethod
    def parse(cls, data: bytes, where: str) -> Manifest:
        """Read and check a manifest.

        Raises:
            IntegrityError: it is not whole, or it was changed after it was written.
        """
        try:
            body = json.loads(data)
            stated = body.pop("digest")
            manifest = cls.model_validate(body)
        except (ValueError, KeyError, AttributeError, ValidationError) as error:
            raise IntegrityError(
                f"{where} is not a manifest: restore it, or remove its folder and run again"
            ) from error
        if digest(body, 64) != stated:
            raise IntegrityError(
                f"{where} was changed after it was written (hash mismatch): "
                "restore it, or remove its folder and run again"
            )
        return manifest


def content_digest(files: Sequence[FileEntry]) -> str:
    """Digest of the names and contents of files, in any order."""
    return digest(sorted((f.name, f.size, f.sha256) for f in files), 16)


def derive_version(kind: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """The version of an artefact: a hash over settings, input versions and schema number (DESIGN §2)."""
    return digest({"kind": kind, "schema": KINDS[kind], "settings": dict(settings), "inputs": dict(inputs)})


def make_manifest(
    kind: str,
    version: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    counts: Mapping[str, Any],
    files: Sequence[FileEntry],
) -> Manifest:
    """A manifest whose folder is named by its content."""
    return Manifest(
        kind=kind,
        version=version,
        schema_number=KINDS[kind],
        code_version=__version__,
        settings=dict(settings),
        inputs=dict(inputs),
        counts=dict(counts),
        folder=f"{kind}/{version}/{content_digest(files)}",
        files=tuple(sorted(files, key=lambda f: f.name)),
    )


def kind_of(name: str) -> str:
    """The kind of an input by its name in ``Step.inputs``."""
    return name.partition(":")[0]
