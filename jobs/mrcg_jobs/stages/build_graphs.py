"""Build the query graphs: search every shard for all queries, then merge the results."""

from __future__ import annotations

from mrcg.errors import TrainingError
from mrcg.reranker.graph_build import GraphWork, build_graphs
from mrcg_jobs.job import Job, Outcome


def run(job: Job) -> Outcome:
    """Build the neighbour lists of all labelled queries, or only of those in the split parts that the step names.

    Raises:
        TrainingError: there are no such queries.
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
    if not sum(counts.stated().values()):
        raise TrainingError(f"{job.step.name} has no queries: add labelled scans or lower reranker.folds")
    return Outcome(counts, files)
