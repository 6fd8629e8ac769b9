"""Measure the last epochs of an encoder, one Ray task per epoch, because each embeds the whole gallery."""

from __future__ import annotations

import ray

from mrcg.evaluation.epoch_trials import TestProtocol, measure_encoder
from mrcg.evaluation.paper_systems import TRIAL, TrialEpoch
from mrcg.stages.counts import TrialCounts
from mrcg.storage.store import Store
from mrcg.training.state import snapshots_of
from mrcg_jobs.job import Job, Outcome
from mrcg_jobs.ray_runtime.cluster import cpus_each, own_errors


@ray.remote
def _measure(
    store_url: str, inputs: dict[str, str], epoch: int, neighbours: int, threads: int, gpu: bool
) -> TrialEpoch:
    import torch

    torch.set_num_threads(threads)
    store = Store(store_url)
    artefacts = {kind: store.artefact(kind, version) for kind, version in inputs.items()}
    return measure_encoder(artefacts, epoch, neighbours, "cuda" if gpu else "cpu")


def run(job: Job) -> Outcome:
    """Measure the epochs on the test queries and write the trial."""
    compute, snapshots = job.config.compute, snapshots_of(job.inputs["encoders"])
    assert len(snapshots) == job.config.encoder.snapshots > 0, "System.configure sets encoder.snapshots"
    share = cpus_each(compute.embed_actors)
    task = _measure.options(num_cpus=share, num_gpus=1 if compute.use_gpu else 0)
    inputs, neighbours = dict(job.step.inputs), job.config.graph.neighbours
    job.progress(0, len(snapshots), "embedding the gallery again")
    with own_errors():
        waiting = [
            task.remote(job.store.url, inputs, epoch, neighbours, int(share), compute.use_gpu) for epoch in snapshots
        ]
        measured = []
        while waiting:
            ready, waiting = ray.wait(waiting)
            measured += ray.get(ready)
            job.progress(len(measured), len(snapshots), "epochs measured")
    trial = TestProtocol(job.inputs).trial(measured)
    entry = job.attempt.write(TRIAL, trial.model_dump_json(indent=1).encode())
    return Outcome(TrialCounts(protocol=trial.protocol, epochs=len(trial.epochs)), [entry])
