"""The steps of a run: its stages with their inputs, and the versions of the artefacts that they make.

A version depends only on settings and on the versions of the inputs (docs/design.md#versions). So all versions are
known before any work starts, and stages that are done are skipped without starting Ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mrcg.config.settings import Config
from mrcg.corpus.sources import Source
from mrcg.corpus.splits import Fold
from mrcg.errors import NotFoundError
from mrcg.stages.registry import Stage, pipeline_stages, stage_of, trunk_settings
from mrcg.storage.manifest import derive_version, kind_of
from mrcg.storage.store import Artefact, Store


@dataclass(frozen=True)
class Ancestry:
    """What determines a corpus version in addition to its source and settings.

    Attributes:
        policy: of de-identification; None without a pseudonym key.
        suppressed: digest of the suppression list.
        base: version of the corpus that this one extends, None for the first.
        purged: whether an erasure made the corpus from its base, without reading the source.
    """

    policy: Mapping[str, Any] | None = None
    suppressed: str = ""
    base: str | None = None
    purged: bool = False


@dataclass(frozen=True)
class Step:
    """A stage with its settings and inputs, and the version that follows from them.

    Attributes:
        stage: to run.
        version: of the artefact that it makes.
        settings: that the version depends on.
        inputs: versions by kind; those of a fold are named ``kind:number``.
        fold: that the encoder leaves out in cross-fitting, None for the released encoder.
    """

    stage: Stage
    version: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    fold: Fold | None = None

    @property
    def name(self) -> str:
        """The stage's name, followed by the fold if there is one."""
        return self.stage.name if self.fold is None else f"{self.stage.name} {self.fold}"


def corpus_settings(config: Config, source: Source, ancestry: Ancestry) -> dict[str, Any]:
    """Return the settings that a corpus version depends on."""
    return {
        **stage_of("corpus").recorded_settings(config),
        "listing": source.listing_digest,
        "policy": None if ancestry.policy is None else dict(ancestry.policy),
        "suppressed": ancestry.suppressed,
        **({"purged": True} if ancestry.purged else {}),
    }


def plan(config: Config, source: Source, weights_digest: str, ancestry: Ancestry | None = None) -> tuple[Step, ...]:
    """Return the steps of the whole pipeline with their versions, in the order in which they run.

    Args:
        config: settings of the pipeline.
        source: of the scans; its listing digest is part of the corpus version, its location is not.
        weights_digest: digest of the encoder's initial weights, which replaces their path in the settings.
        ancestry: of the corpus; None for a first corpus without pseudonyms.
    """
    ancestry = ancestry or Ancestry()
    count = config.reranker.folds if config.reranker.graphs == "cross_fit" else 0
    folds = [Fold(number, count) for number in range(count)]
    steps: dict[tuple[str, Fold | None], Step] = {}

    def add(stage: Stage, fold: Fold | None = None) -> None:
        settings = stage.recorded_settings(config)
        inputs = {kind: steps[kind, fold if (kind, fold) in steps else None].version for kind in stage.inputs(config)}
        if stage.kind == "corpus":
            settings = corpus_settings(config, source, ancestry)
            inputs = {} if ancestry.base is None else {"corpus": ancestry.base}
        if stage.kind == "features":
            settings = trunk_settings(config, weights_digest)
        if stage.kind == "encoders":
            settings["encoder"]["weights"] = weights_digest
        if stage.kind in ("encoders", "graphs") and fold is not None:
            settings["fold"] = [fold.number, fold.count]
            settings["seed"] = config.seed
        if stage.kind == "rerankers":
            inputs |= {f"{kind}:{f.number}": steps[kind, f].version for f in folds for kind in FOLD_INPUTS}
        version = derive_version(stage.kind, settings, inputs)
        steps[stage.kind, fold] = Step(stage, version, settings, inputs, fold)

    for stage in pipeline_stages(config):
        if stage.kind == "rerankers":
            for fold in folds:
                for fold_stage in pipeline_stages(config):
                    if fold_stage.by_fold:
                        add(fold_stage, fold)
        add(stage)
    return tuple(steps.values())


#: Kinds that the reranker reads of each fold.
FOLD_INPUTS = ("embeddings", "graphs")


def measuring_step(stage: Stage, config: Config, steps: Iterable[Step]) -> Step:
    """Return the step of a measuring stage.

    Args:
        stage: ``MEASURE_ENCODER`` or ``MEASURE_RERANKER``.
        config: settings of the pipeline.
        steps: of the plan whose artefacts are measured; steps of folds are ignored.
    """
    versions = {step.stage.kind: step.version for step in steps if step.fold is None}
    settings, inputs = stage.recorded_settings(config), {kind: versions[kind] for kind in stage.inputs(config)}
    return Step(stage, derive_version(stage.kind, settings, inputs), settings, inputs)


def open_inputs(store: Store, step: Step) -> dict[str, Artefact]:
    """Open the artefacts that a step reads, by their names in ``Step.inputs``.

    Raises:
        NotFoundError: an earlier stage has not run with these settings; the message names it.
    """
    artefacts: dict[str, Artefact] = {}
    for name, version in step.inputs.items():
        kind = kind_of(name)
        if not store.has(kind, version):
            maker = stage_of(kind).name
            raise NotFoundError(
                f"{step.stage.name} needs {kind}/{version}; run `mrcg {maker}` with the same options first"
            )
        artefacts[name] = store.artefact(kind, version)
    return artefacts
