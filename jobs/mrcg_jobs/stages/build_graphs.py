"""Build the query graphs: every shard is asked for all queries, then the answers are merged."""

from __future__ import annotations

from mrcg.errors import TrainingError
from mrcg.reranker.graph_build import GraphWork, build_graphs
from mrcg_jobs.job import Job, Outcome


def run(job: Job) -> Outcome:
    """Make the neighbour lists of all labelled queries, or of those of some parts.

    Raises:
        TrainingError: there are none.
    """
    inputs, parts = job.step.inputs, job.step.settings.get("parts")
    work = GraphWork(
        store=job.store.url,
        corpus=inputs["corpus"],
        splits=inputs["splits"],
        embeddings=inputs["embeddings"],
        index=inputs["indexes"],
        attempt=job.attempt.folder,
        neighbours=job.config.graph.neighbours,
        fold=job.step.fold,
        parts=None if parts is None else tuple(parts),
        seed=job.config.seed,
        threads=job.config.compute.index_threads,
    )
    counts, files = build_graphs(work, job.executor, job.progress)
    if not sum(counts.values()):
        raise TrainingError(
            f"{job.step.name} has no scans to look up: bring more labelled scans or lower reranker.folds"
        )
    return Outcome(counts, files)
