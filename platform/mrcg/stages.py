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
    """A source of scans and the digest of its sorted listing."""

    location: str
    listing_digest: str


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


def plan(config: Config, source: Source, weights_digest: str) -> tuple[Step, ...]:
    """The versions of all stages, in order.

    Args:
        config: settings of the pipeline.
        source: where the scans are; its listing decides the corpus version.
        weights_digest: digest of the encoder's initial weights (their place is not part of a version).
    """
    versions: dict[str, str] = {}
    steps: list[Step] = []
    for stage in STAGES:
        settings = stage.settings(config)
        if stage.kind == "corpus":
            settings["listing"] = source.listing_digest
        if stage.kind == "encoders":
            settings["encoder"]["weights"] = weights_digest
        inputs = {kind: versions[kind] for kind in stage.inputs}
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
