"""Measure the last epochs of a reranker in one Ray task, so that the driver loads neither models nor vectors."""

from __future__ import annotations

import ray

from mrcg.evaluation.epoch_trials import measure_rerankers
from mrcg.evaluation.paper_systems import TRIAL, Trial
from mrcg.stages.counts import TrialCounts
from mrcg.storage.store import Store
from mrcg_jobs.job import Job, Outcome
from mrcg_jobs.ray_runtime.cluster import own_errors


@ray.remote
def _measure(store_url: str, inputs: dict[str, str], gpu: bool) -> Trial:
    store = Store(store_url)
    artefacts = {kind: store.artefact(kind, version) for kind, version in inputs.items()}
    return measure_rerankers(artefacts, "cuda" if gpu else "cpu")


def run(job: Job) -> Outcome:
    """Measure the epochs on the test queries and write the trial."""
    gpu = job.config.compute.use_gpu
    job.progress(0, 1, "scoring the test queries")
    task = _measure.options(num_cpus=1, num_gpus=1 if gpu else 0)
    with own_errors():
        trial = ray.get(task.remote(job.store.url, dict(job.step.inputs), gpu))
    assert len(trial.epochs) == job.config.reranker.snapshots > 0, "System.configure sets reranker.snapshots"
    job.progress(1, 1)
    entry = job.attempt.write(TRIAL, trial.model_dump_json(indent=1).encode())
    return Outcome(TrialCounts(protocol=trial.protocol, epochs=len(trial.epochs)), [entry])
