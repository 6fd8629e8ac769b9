"""Run stages in order: skip finished ones, resume unfinished ones and publish their results."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from mrcg.config.settings import Config
from mrcg.corpus.sources import Source, open_source, survey
from mrcg.encoder.pretrained import resolve_weights
from mrcg.errors import SettingsError
from mrcg.execution import ray_environment
from mrcg.execution.executor import Executor, LocalExecutor, Progress
from mrcg.pipeline.ancestry import ancestry_of
from mrcg.pipeline.plan import Step, open_inputs, plan
from mrcg.privacy.pseudonyms import pseudonyms_from_environment
from mrcg.stages.counts import Counts
from mrcg.stages.registry import pipeline_stages, stage_of
from mrcg.storage.attempts import begin
from mrcg.storage.manifest import Manifest, make_manifest
from mrcg.storage.store import Store
from mrcg_jobs.job import Job

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageResult:
    """The result of one stage: a row of the stage table."""

    stage: str
    kind: str
    version: str
    ran: bool
    seconds: float
    counts: Counts


def plan_steps(store: Store, config: Config, location: str, last: str | None = None) -> tuple[Source, tuple[Step, ...]]:
    """Survey a source and plan the steps that it needs; errors are raised here, before any work starts.

    Args:
        store: where artefacts go.
        config: settings.
        location: of the source.
        last: name of the last stage to plan; None plans all stages.

    Raises:
        SettingsError: the store is inside the source, so it would be ingested.
        SourceError: the source does not exist or is empty.
        UsageError: the source names patients and no pseudonym key is set.
        WeightsError: the initial weights cannot be loaded.
    """
    files = open_source(location)
    if f"{store.root}/".startswith(f"{files.location}/"):
        raise SettingsError(
            f"--store {store.url} is inside --source {location} and would be ingested: move one of them"
        )
    names = [stage.name for stage in pipeline_stages()]
    count = len(names) if last is None else names.index(last) + 1
    # Resolving weights may download them, so stages before those that read them skip it.
    weights = resolve_weights(config.encoder).digest if stage_of("features").name in names[:count] else ""
    source = survey(files)
    ancestry = ancestry_of(store, config, source, pseudonyms_from_environment())
    selected = set(names[:count])
    return source, tuple(step for step in plan(config, source, weights, ancestry) if step.stage.name in selected)


def run_stages(
    store: Store,
    config: Config,
    source: Source,
    steps: Iterable[Step],
    ray_address: str | None,
    progress_of: Callable[[str], Progress],
    executor: Executor | None = None,
) -> Iterator[StageResult]:
    """Run steps in order and skip those whose version exists; Ray starts when it is first needed.

    Args:
        store: where artefacts go.
        config: settings.
        source: of ``plan_steps``.
        steps: of ``plan_steps``, all or some.
        ray_address: of a cluster; None starts one on this machine.
        progress_of: returns the progress callback of a step, given its name.
        executor: for stages that map work over items; None runs small stages in this process and the others on Ray.

    Yields:
        The result of each step when it is done.
    """
    store.check_writable()
    steps = tuple(steps)
    for step in steps:
        if step.stage.intermediate and not _is_needed(store, step, steps):
            continue
        start = time.monotonic()
        if store.has(step.stage.kind, step.version):
            manifest, ran = store.manifest(step.stage.kind, step.version), False
        else:
            runner = _StepRunner(store, config, source, ray_address, executor)
            manifest, ran = runner.run(step, progress_of(step.name)), True
        seconds = time.monotonic() - start
        yield StageResult(step.name, step.stage.kind, step.version, ran, seconds, manifest.counts)


def _is_needed(store: Store, intermediate: Step, steps: Sequence[Step]) -> bool:
    """Return whether a step remains that reads what this one makes; alone, a step is wanted for its own sake."""
    readers = [step for step in steps if intermediate.version in step.inputs.values()]
    return not readers or not all(store.has(step.stage.kind, step.version) for step in readers)


@dataclass(frozen=True)
class _StepRunner:
    """Runs single steps; holds what all steps of a run share."""

    store: Store
    config: Config
    source: Source
    ray_address: str | None
    executor: Executor | None

    def run(self, step: Step, progress: Progress) -> Manifest:
        """Run one step and publish its version."""
        store, inputs = self.store, open_inputs(self.store, step)
        executor = self.executor or (LocalExecutor() if step.stage.local else self._ray(progress))
        started = time.time()
        module = importlib.import_module(step.stage.module)
        with begin(store, step.stage.kind, step.version, step.inputs) as attempt:
            outcome = module.run(Job(store, self.config, self.source, step, inputs, attempt, executor, progress))
            manifest = make_manifest(
                step.stage.kind, step.version, step.settings, step.inputs, outcome.counts, outcome.files
            )
            published = attempt.publish(manifest)
        store.record_run(published, {"started": started, "seconds": time.time() - started, **outcome.times})
        return published

    def _ray(self, progress: Progress) -> Executor:
        # Imported here, so that a run that skips every stage does not need Ray.
        progress(0, 0, "starting Ray")
        ray_environment.prepare()
        from mrcg_jobs.ray_runtime import cluster
        from mrcg_jobs.ray_runtime.executor import RayExecutor

        cluster.start(self.ray_address)
        return RayExecutor()


def steps_of(steps: Iterable[Step], name: str) -> tuple[Step, ...]:
    """Return the steps of one stage: the main step, then one per fold if the stage is cross-fitted.

    Raises:
        SettingsError: a run with these settings does not have the stage.
    """
    found = tuple(step for step in steps if step.stage.name == name)
    if not found:
        raise SettingsError(
            f"{name}: these settings have no such stage; the trunk runs as a stage of its own with "
            "encoder.freeze=convolutions and encoder.cache_trunk=true"
        )
    return found
