"""The manifest: makes a version visible and records how it was made (`docs/design.md#versions`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import SerializeAsAny, ValidationError, model_validator

from mrcg.errors import IntegrityError
from mrcg.frozen import Frozen
from mrcg.hashing import digest, sha256
from mrcg.stages.counts import Counts
from mrcg.stages.registry import stage_of
from mrcg.version import __version__

KindCounts = TypeVar("KindCounts", bound=Counts)


class FileEntry(Frozen):
    """One file of a version: its name below the content folder, size in bytes and SHA-256.

    ``folder`` is set where the file belongs to an earlier version: it is the content folder of that version. An
    incremental corpus, for example, refers to the files of its base instead of copying them.
    """

    name: str
    size: int
    sha256: str
    folder: str | None = None

    @classmethod
    def of(cls, name: str, data: bytes) -> FileEntry:
        """Return the entry of a file with this content."""
        return cls(name=name, size=len(data), sha256=sha256(data))


class Manifest(Frozen):
    """What a version was made from and consists of. It has no times or hosts, so equal work gives equal bytes."""

    kind: str
    version: str
    schema_number: int
    code_version: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    counts: SerializeAsAny[Counts]
    folder: str
    files: tuple[FileEntry, ...]

    @model_validator(mode="before")
    @classmethod
    def _counts_of_its_kind(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("counts"), Mapping):
            return {**data, "counts": _counts_model(data.get("kind")).model_validate(data["counts"])}
        return data

    def counts_as(self, model: type[KindCounts]) -> KindCounts:
        """Return the counts, typed by the model of its kind."""
        assert isinstance(self.counts, model), (self.kind, type(self.counts))
        return self.counts

    @property
    def content(self) -> str:
        """The digest of the names and contents of all files."""
        return content_digest(self.files)

    def to_bytes(self) -> bytes:
        """Return the manifest as JSON, with a digest of all other fields that reveals later changes."""
        body = {**self.model_dump(mode="json"), "counts": self.counts.stated()}
        return json.dumps({**body, "digest": digest(body, 64)}, indent=1, sort_keys=True).encode()

    @classmethod
    def parse(cls, data: bytes, where: str) -> Manifest:
        """Read and check a manifest.

        Raises:
            IntegrityError: the data is not a manifest, or was changed after it was written.
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


def _counts_model(kind: object) -> type[Counts]:
    try:
        return stage_of(str(kind)).counts
    except KeyError:
        raise ValueError(f"no stage makes {kind}") from None


def content_digest(files: Sequence[FileEntry]) -> str:
    """Return the digest of the names and contents of files; their order does not matter."""
    return digest(sorted((f.name, f.size, f.sha256) for f in files), 16)


def derive_version(kind: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Return the version of an artefact: a hash of its settings, input versions and schema number."""
    return digest({"kind": kind, "schema": stage_of(kind).schema, "settings": dict(settings), "inputs": dict(inputs)})


def make_manifest(
    kind: str,
    version: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    counts: Counts,
    files: Sequence[FileEntry],
) -> Manifest:
    """Return a manifest whose content folder is named by the digest of its files."""
    return Manifest(
        kind=kind,
        version=version,
        schema_number=stage_of(kind).schema,
        code_version=__version__,
        settings=dict(settings),
        inputs=dict(inputs),
        counts=counts,
        folder=f"{kind}/{version}/{content_digest(files)}",
        files=tuple(sorted(files, key=lambda f: f.name)),
    )


def kind_of(name: str) -> str:
    """Return the kind of an input from its name in ``Step.inputs``, which is the kind or ``kind:suffix``."""
    return name.partition(":")[0]
