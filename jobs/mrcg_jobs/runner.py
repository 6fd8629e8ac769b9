"""All stages in order: skip what is there, go on with what was begun, publish what is finished."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mrcg.config.settings import Config
from mrcg.corpus.sources import Source, open_source, survey
from mrcg.encoder.pretrained import resolve_weights
from mrcg.errors import SettingsError
from mrcg.execution import ray_environment
from mrcg.execution.executor import Executor, LocalExecutor, Progress
from mrcg.pipeline.ancestry import ancestry_of
from mrcg.pipeline.stages import STAGES, Step, open_inputs, plan
from mrcg.privacy.pseudonyms import pseudonyms_from_environment
from mrcg.storage.attempts import begin
from mrcg.storage.manifest import Manifest, make_manifest
from mrcg.storage.store import Store
from mrcg_jobs.job import Job

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageResult:
    """One line of the table of stages."""

    stage: str
    kind: str
    version: str
    ran: bool
    seconds: float
    counts: Mapping[str, Any]


def plan_steps(store: Store, config: Config, location: str, last: str | None = None) -> tuple[Source, tuple[Step, ...]]:
    """A source as it is now and the versions that it gives; what cannot work fails here, before any work.

    Args:
        store: where artefacts go.
        config: settings.
        location: of the source.
        last: name of the last stage wanted; all where it is None.

    Raises:
        SettingsError: the store lies in the source, so it would be ingested.
        SourceError: no such source, or an empty one.
        UsageError: it names patients and there is no pseudonym key.
        WeightsError: the initial weights cannot be had.
    """
    files = open_source(location)
    if f"{store.root}/".startswith(f"{files.location}/"):
        raise SettingsError(
            f"--store {store.url} lies in --source {location}: it would be ingested; name another place"
        )
    names = [stage.name for stage in STAGES]
    count = len(names) if last is None else names.index(last) + 1
    # Weights may have to be fetched: not for a stage that comes before the encoder.
    weights = resolve_weights(config.encoder).digest if "train-encoder" in names[:count] else ""
    source = survey(files)
    ancestry = ancestry_of(store, config, source, pseudonyms_from_environment())
    wanted = set(names[:count])
    return source, tuple(step for step in plan(config, source, weights, ancestry) if step.stage.name in wanted)


def run_stages(
    store: Store,
    config: Config,
    source: Source,
    steps: Iterable[Step],
    ray_address: str | None,
    progress_of: Callable[[str], Progress],
    executor: Executor | None = None,
) -> Iterator[StageResult]:
    """Run steps in order, each only where its version is not there yet; Ray starts when first needed.

    Args:
        store: where artefacts go.
        config: settings.
        source: of ``plan_steps``.
        steps: of ``plan_steps``, all or some.
        ray_address: of a cluster; None starts one on this machine.
        progress_of: gives a stage the progress it reports to.
        executor: do the pieces of stages that are cut into pieces; None: those of Ray.

    Yields:
        A result after each stage.
    """
    store.check_writable()
    for step in steps:
        start = time.monotonic()
        if store.has(step.stage.kind, step.version):
            manifest, ran = store.manifest(step.stage.kind, step.version), False
        else:
            begun = _Begun(store, config, source, ray_address, executor)
            manifest, ran = begun.run(step, progress_of(step.name)), True
        seconds = time.monotonic() - start
        yield StageResult(step.name, step.stage.kind, step.version, ran, seconds, manifest.counts)


@dataclass(frozen=True)
class _Begun:
    """A run of some steps: what all of them share."""

    store: Store
    config: Config
    source: Source
    ray_address: str | None
    executor: Executor | None

    def run(self, step: Step, progress: Progress) -> Manifest:
        """Do one step and publish what it made."""
        store, inputs = self.store, open_inputs(self.store, step)
        executor = self.executor or (LocalExecutor() if step.stage.small else self._ray(progress))
        started = time.time()
        module = importlib.import_module(f"mrcg_jobs.stages.{step.stage.name.replace('-', '_')}")
        with begin(store, step.stage.kind, step.version, step.inputs) as attempt:
            outcome = module.run(Job(store, self.config, self.source, step, inputs, attempt, executor, progress))
            manifest = make_manifest(
                step.stage.kind, step.version, step.settings, step.inputs, outcome.counts, outcome.files
            )
            published = attempt.publish(manifest)
        store.record_run(published, {"started": started, "seconds": time.time() - started, **outcome.times})
        return published

    def _ray(self, progress: Progress) -> Executor:
        # Ray is imported here: a run in which every stage is skipped does without it.
        progress(0, 0, "starting Ray")
        ray_environment.prepare()
        from mrcg_jobs.ray_runtime import cluster
        from mrcg_jobs.ray_runtime.executor import RayExecutor

        cluster.start(self.ray_address)
        return RayExecutor()


def steps_of(steps: Iterable[Step], name: str) -> tuple[Step, ...]:
    """The steps of one stage: one, and one more for each fold."""
    return tuple(step for step in steps if step.stage.name == name)
