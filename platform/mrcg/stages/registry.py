"""The registry of the stages: one entry for each, with all that other parts of MRCG have to know of it.

To add a stage, add an entry to ``STAGES`` and a module with ``run(job)``. Its command, its versions, and its place in a
run, a reindex and an erasure follow from the entry (docs/architecture.md#from-a-file-to-an-answer).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mrcg.config.loading import recorded
from mrcg.config.settings import Config
from mrcg.stages.counts import (
    CorpusCounts,
    Counts,
    EmbeddingCounts,
    EncoderCounts,
    FeatureCounts,
    GraphCounts,
    IndexCounts,
    ReportCounts,
    RerankerCounts,
    SplitCounts,
    TrialCounts,
)


class OnUpdate(enum.Enum):
    """What becomes of a kind when the gallery of a release changes, by a reindex or an erasure."""

    KEPT = "kept"  # the same version: models
    AGAIN = "again"  # made again
    EXTENDED = "extended"  # made from the version of the release, if its settings are the same


@dataclass(frozen=True)
class Stage:
    """A kind of work in the pipeline.

    Attributes:
        name: also the name of its command.
        kind: of the artefact that it makes.
        schema: number of the kind's format, part of every version; raise it when the format changes.
        counts: what the manifests of the kind count.
        module: has the function ``run(job)``.
        help: of its command, in one sentence; empty for a stage without a command.
        inputs: kinds of the artefacts that it reads, for some settings.
        settings: parts of the configuration that its version depends on.
        local: the work is small enough to run in this process, without a cluster.
        on_update: what a reindex or an erasure does.
        update_settings: more settings of a version that a reindex or an erasure makes.
        purge_settings: more settings of a version that an erasure makes.
        only_from_scratch: inputs that are not read if the version is made from an earlier one.
        by_fold: runs again for each fold of cross-fitting.
        self_contained: a version can be read without the versions that it was made from.
        learned: holds what a model learned, or its figures: an erasure keeps it. The receipt names models, but no kind
            that ``measures``, which only has figures.
        measures: belongs to `mrcg reproduce`, not to a run.
        intermediate: read only while other kinds are made: nobody needs a version to read what was made from it, so
            `mrcg gc` removes it, and neither a reindex nor an erasure makes it.
        wanted: whether a run with these settings has the stage.
    """

    name: str
    kind: str
    schema: int
    counts: type[Counts]
    module: str
    help: str
    inputs: Callable[[Config], tuple[str, ...]]
    settings: tuple[str, ...]
    local: bool = False
    on_update: OnUpdate = OnUpdate.AGAIN
    update_settings: Mapping[str, Any] = field(default_factory=dict)
    purge_settings: Mapping[str, Any] = field(default_factory=dict)
    only_from_scratch: tuple[str, ...] = ()
    by_fold: bool = False
    self_contained: bool = False
    learned: bool = False
    measures: bool = False
    intermediate: bool = False
    wanted: Callable[[Config], bool] = lambda config: True

    def recorded_settings(self, config: Config) -> dict[str, Any]:
        """Return the settings that a version of this stage depends on, as its manifest states them."""
        return {part: config.seed if part == "seed" else recorded(config, part) for part in self.settings}


def _reads(*kinds: str) -> Callable[[Config], tuple[str, ...]]:
    return lambda config: kinds


def _with_features(*kinds: str) -> Callable[[Config], tuple[str, ...]]:
    return lambda config: (*kinds, "features") if config.encoder.stores_features else kinds


def _embed_inputs(config: Config) -> tuple[str, ...]:
    inputs = _with_features("corpus", "encoders")(config)
    # The appearance part is fitted on the training part.
    return (*inputs, "splits") if config.embed.appearance.components else inputs


MEASURE_ENCODER = Stage(
    name="measure-encoder",
    kind="trials",
    schema=2,
    counts=TrialCounts,
    module="mrcg_jobs.stages.measure_encoder",
    help="",
    inputs=_with_features("corpus", "splits", "encoders"),
    settings=("graph",),
    on_update=OnUpdate.KEPT,
    learned=True,
    measures=True,
)
MEASURE_RERANKER = replace(
    MEASURE_ENCODER,
    name="measure-reranker",
    module="mrcg_jobs.stages.measure_reranker",
    inputs=_reads("corpus", "splits", "embeddings", "graphs", "rerankers"),
    settings=(),
)

#: In the order in which they run.
STAGES: tuple[Stage, ...] = (
    Stage(
        name="ingest",
        kind="corpus",
        schema=3,
        counts=CorpusCounts,
        module="mrcg_jobs.stages.ingest",
        help="Read, check, de-identify and group scans; reads only new, changed or previously unreadable files.",
        inputs=_reads(),
        settings=("ingest",),
        self_contained=True,
    ),
    Stage(
        name="split",
        kind="splits",
        schema=3,
        counts=SplitCounts,
        module="mrcg_jobs.stages.split",
        help="Assign scans to gallery and test queries.",
        inputs=_reads("corpus"),
        settings=("split", "seed"),
        local=True,
    ),
    Stage(
        name="extract-features",
        kind="features",
        schema=1,
        counts=FeatureCounts,
        module="mrcg_jobs.stages.extract_features",
        help="Run the frozen trunk of the encoder over the corpus.",
        inputs=_reads("corpus"),
        settings=(),  # `trunk_settings`, which need the digest of the weights
        on_update=OnUpdate.KEPT,
        intermediate=True,
        wanted=lambda config: config.encoder.stores_features,
    ),
    Stage(
        name="train-encoder",
        kind="encoders",
        schema=2,
        counts=EncoderCounts,
        module="mrcg_jobs.stages.train_encoder",
        help="Train the triplet CNN.",
        inputs=_with_features("corpus", "splits"),
        settings=("encoder", "seed"),
        on_update=OnUpdate.KEPT,
        by_fold=True,
        self_contained=True,
        learned=True,
    ),
    Stage(
        name="embed",
        kind="embeddings",
        schema=1,
        counts=EmbeddingCounts,
        module="mrcg_jobs.stages.embed",
        help="Embed every scan of the corpus.",
        inputs=_embed_inputs,
        settings=("embed",),
        on_update=OnUpdate.EXTENDED,
        only_from_scratch=("splits",),  # only a new appearance part is fitted on them
        by_fold=True,
    ),
    Stage(
        name="build-index",
        kind="indexes",
        schema=2,
        counts=IndexCounts,
        module="mrcg_jobs.stages.build_index",
        help="Build the sharded FAISS index.",
        inputs=_reads("corpus", "embeddings"),
        settings=("index", "seed"),
        on_update=OnUpdate.EXTENDED,
        purge_settings={"purge": True},
        by_fold=True,
    ),
    Stage(
        name="build-graphs",
        kind="graphs",
        schema=2,
        counts=GraphCounts,
        module="mrcg_jobs.stages.build_graphs",
        help="Find the nearest neighbours of every query.",
        inputs=_reads("corpus", "splits", "embeddings", "indexes"),
        settings=("graph",),
        # A report needs these parts; graphs of the training part only train the reranker, which does not change.
        update_settings={"parts": ["validation", "test"]},
        by_fold=True,
    ),
    Stage(
        name="train-reranker",
        kind="rerankers",
        schema=2,
        counts=RerankerCounts,
        module="mrcg_jobs.stages.train_reranker",
        help="Train the GNN reranker.",
        inputs=_reads("corpus", "embeddings", "graphs"),
        settings=("reranker", "seed"),
        on_update=OnUpdate.KEPT,
        self_contained=True,
        learned=True,
    ),
    Stage(
        name="evaluate",
        kind="reports",
        schema=4,
        counts=ReportCounts,
        module="mrcg_jobs.stages.evaluate",
        help="Measure retrieval on the test queries and known items, in each order.",
        inputs=_reads("corpus", "splits", "embeddings", "graphs", "rerankers"),
        settings=("evaluate",),
    ),
    MEASURE_ENCODER,
    MEASURE_RERANKER,
)


def trunk_settings(config: Config, weights_digest: str) -> dict[str, Any]:
    """Return the settings that trunk features depend on: not those of the branches, which several encoders may have."""
    names = ("backbone", "head", "input_size", "precision", "channels_last")
    return {
        "trunk": {
            **{name: getattr(config.encoder, name) for name in names},
            "weights": weights_digest,
            "batch_size": config.encoder.batch_size,
            **({"mirror": True} if config.encoder.mirror else {}),
            **({"engine": config.encoder.trunk_engine} if config.encoder.trunk_engine != "torch" else {}),
            # Initial weights that are drawn depend on the seed.
            **({"seed": config.seed} if config.encoder.weights == "none" else {}),
        }
    }


def pipeline_stages(config: Config | None = None) -> tuple[Stage, ...]:
    """Return the stages of a run, in the order in which they run; without settings, those that a run may have."""
    return tuple(stage for stage in STAGES if not stage.measures and (config is None or stage.wanted(config)))


def artefact_kinds() -> tuple[str, ...]:
    """Return the kinds of artefact, each after those that it is made from."""
    return tuple(dict.fromkeys(stage.kind for stage in STAGES))


def stage_of(kind: str) -> Stage:
    """Return the stage that makes a kind; of several, the first.

    Raises:
        KeyError: there is none.
    """
    for stage in STAGES:
        if stage.kind == kind:
            return stage
    raise KeyError(kind)
