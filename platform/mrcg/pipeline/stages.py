"""The pipeline as data: which stage makes which artefact from which, and the versions that follow.

Every version is known before any work starts, because it depends on settings and versions alone
(DESIGN §2). So a stage that is done is skipped without starting Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mrcg.config.settings import Config
from mrcg.corpus.sources import Source
from mrcg.corpus.splits import Fold
from mrcg.errors import NotFoundError
from mrcg.storage.manifest import derive_version, kind_of
from mrcg.storage.store import Artefact, Store


@dataclass(frozen=True)
class Ancestry:
    """What a corpus follows from beside its source and settings.

    Attributes:
        policy: of de-identification; None where nothing is made a pseudonym.
        suppressed: digest of the suppression list.
        base: version of the corpus that it grows from, None for the first.
        purged: it was made by an erasure, from its base alone.
    """

    policy: Mapping[str, Any] | None = None
    suppressed: str = ""
    base: str | None = None
    purged: bool = False


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


#: What `mrcg reproduce` measures over the last epochs of an encoder, or of a reranker.
MEASURE_ENCODER = Stage("measure-encoder", "trials", ("corpus", "splits", "encoders"), _dump("graph"))
MEASURE_RERANKER = Stage(
    "measure-reranker", "trials", ("corpus", "splits", "embeddings", "graphs", "rerankers"), lambda config: {}
)

#: Done once more for each fold of ``reranker.graphs = cross_fit``, in this order.
FOLDED = tuple(stage for stage in STAGES if stage.kind in ("encoders", "embeddings", "indexes", "graphs"))


@dataclass(frozen=True)
class Step:
    """A stage with the version that its settings and inputs give.

    ``inputs`` are versions by kind; those of a fold are named ``kind:number``. ``fold`` is what an encoder of
    cross-fitting leaves out, None for the encoder that is released.
    """

    stage: Stage
    version: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    fold: Fold | None = None

    @property
    def name(self) -> str:
        """The stage, and which fold of how many."""
        return self.stage.name if self.fold is None else f"{self.stage.name} {self.fold}"


def corpus_settings(config: Config, source: Source, ancestry: Ancestry) -> dict[str, Any]:
    """The settings that a corpus' version follows from."""
    return {
        **_dump("ingest")(config),
        "listing": source.listing_digest,
        "policy": None if ancestry.policy is None else dict(ancestry.policy),
        "suppressed": ancestry.suppressed,
        **({"purged": True} if ancestry.purged else {}),
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
    count = config.reranker.folds if config.reranker.graphs == "cross_fit" else 0
    folds = [Fold(number, count) for number in range(count)]
    steps: dict[tuple[str, Fold | None], Step] = {}

    def add(stage: Stage, fold: Fold | None = None) -> None:
        settings = stage.settings(config)
        inputs = {kind: steps[kind, fold if (kind, fold) in steps else None].version for kind in stage.inputs}
        if stage.kind == "corpus":
            settings = corpus_settings(config, source, ancestry)
            inputs = {} if ancestry.base is None else {"corpus": ancestry.base}
        if stage.kind == "encoders":
            settings["encoder"]["weights"] = weights_digest
        if stage.kind in ("encoders", "graphs") and fold is not None:
            settings["fold"] = [fold.number, fold.count]
            settings["seed"] = config.seed
        if stage.kind == "rerankers":
            inputs |= {f"{kind}:{one.number}": steps[kind, one].version for one in folds for kind in OF_FOLDS}
        version = derive_version(stage.kind, settings, inputs)
        steps[stage.kind, fold] = Step(stage, version, settings, inputs, fold)

    for stage in STAGES:
        if stage.kind == "rerankers":
            for fold in folds:
                for again in FOLDED:
                    add(again, fold)
        add(stage)
    return tuple(steps.values())


#: What the reranker reads of each fold.
OF_FOLDS = ("embeddings", "graphs")


def measuring(stage: Stage, config: Config, steps: Iterable[Step]) -> Step:
    """The step that measures what others made."""
    versions = {step.stage.kind: step.version for step in steps if step.fold is None}
    settings, inputs = stage.settings(config), {kind: versions[kind] for kind in stage.inputs}
    return Step(stage, derive_version(stage.kind, settings, inputs), settings, inputs)


def open_inputs(store: Store, step: Step) -> dict[str, Artefact]:
    """The artefacts a step reads, by their names in ``Step.inputs``.

    Raises:
        NotFoundError: an earlier stage has not run with these settings; names it.
    """
    found: dict[str, Artefact] = {}
    for name, version in step.inputs.items():
        kind = kind_of(name)
        if not store.has(kind, version):
            maker = next(stage.name for stage in STAGES if stage.kind == kind)
            raise NotFoundError(
                f"{step.stage.name} needs {kind}/{version}: run `mrcg {maker}` with the same options first"
            )
        found[name] = store.artefact(kind, version)
    return found
