"""The pipeline as data: which stage makes which artefact from which, and the versions that follow.

Every version is known before any work starts, because it depends on settings and versions alone
(DESIGN §2). So a stage that is done is skipped without starting Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mrcg.config import Config
from mrcg.errors import NotFoundError
from mrcg.manifest import derive_version
from mrcg.store import Artefact, Store


@dataclass(frozen=True)
class Source:
    """A source of scans: where it is, the digest of its listing and what a walk through it counted.

    ``identifying``: it holds files that name patients, as far as that can be told before they are read.
    """

    location: str
    listing_digest: str
    files: int
    size: int
    identifying: bool


@dataclass(frozen=True)
class Ancestry:
    """What a corpus follows from beside its source and settings.

    Attributes:
        policy: of de-identification; None where nothing is made a pseudonym.
        suppressed: digest of the suppression list.
        base: version of the corpus that it grows from, None for the first.
    """

    policy: Mapping[str, Any] | None = None
    suppressed: str = ""
    base: str | None = None


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    settings: Callable[[Config], dict[str, Any]]
    small: bool = False  # work on one table, done where it is asked for and not on a cluster


def _dump(*parts: str) -> Callable[[Config], dict[str, Any]]:
    return lambda config: {part: _plain(getattr(config, part)) for part in parts}


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


STAGES: tuple[Stage, ...] = (
    Stage("ingest", "corpus", (), _dump("ingest")),
    Stage("split", "splits", ("corpus",), _dump("split", "seed"), small=True),
    Stage("train-encoder", "encoders", ("corpus", "splits"), _dump("encoder", "seed")),
    Stage("embed", "embeddings", ("corpus", "encoders"), _dump("embed")),
    Stage("build-index", "indexes", ("corpus", "embeddings"), _dump("index", "seed")),
    Stage("build-graphs", "graphs", ("corpus", "splits", "embeddings", "indexes"), _dump("graph")),
    Stage("train-reranker", "rerankers", ("corpus", "embeddings", "graphs"), _dump("reranker", "seed")),
    Stage("evaluate", "reports", ("corpus", "splits", "embeddings", "graphs", "rerankers"), _dump("evaluate")),
)


@dataclass(frozen=True)
class Step:
    """A stage with the version that its settings and inputs give."""

    stage: Stage
    version: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]


def corpus_settings(config: Config, source: Source, ancestry: Ancestry) -> dict[str, Any]:
    """The settings that a corpus' version follows from."""
    return {
        **_dump("ingest")(config),
        "listing": source.listing_digest,
        "policy": None if ancestry.policy is None else dict(ancestry.policy),
        "suppressed": ancestry.suppressed,
    }


def plan(config: Config, source: Source, weights_digest: str, ancestry: Ancestry | None = None) -> tuple[Step, ...]:
    """The versions of all stages, in order.

    Args:
        config: settings of the pipeline.
        source: where the scans are; its listing decides the corpus version.
        weights_digest: digest of the encoder's initial weights (their place is not part of a version).
        ancestry: of the corpus; None for a first one without pseudonyms.
    """
    ancestry = ancestry or Ancestry()
    versions: dict[str, str] = {}
    steps: list[Step] = []
    for stage in STAGES:
        settings = stage.settings(config)
        inputs = {kind: versions[kind] for kind in stage.inputs}
        if stage.kind == "corpus":
            settings = corpus_settings(config, source, ancestry)
            inputs = {} if ancestry.base is None else {"corpus": ancestry.base}
        if stage.kind == "encoders":
            settings["encoder"]["weights"] = weights_digest
        version = derive_version(stage.kind, settings, inputs)
        versions[stage.kind] = version
        steps.append(Step(stage, version, settings, inputs))
    return tuple(steps)


def open_inputs(store: Store, step: Step) -> dict[str, Artefact]:
    """The artefacts a step reads, by kind.

    Raises:
        NotFoundError: an earlier stage has not run with these settings; names it.
    """
    found: dict[str, Artefact] = {}
    for kind, version in step.inputs.items():
        if not store.has(kind, version):
            maker = next(stage.name for stage in STAGES if stage.kind == kind)
            raise NotFoundError(
                f"{step.stage.name} needs {kind}/{version}: run `mrcg {maker}` with the same options first"
            )
        found[kind] = store.artefact(kind, version)
    return found
