"""Build the index, or extend an earlier one: the library plans the work, the executor runs it."""

from __future__ import annotations

from mrcg.encoder.appearance import FACTS, TENSORS
from mrcg.index_build.build import build_index
from mrcg.index_build.build_plan import IndexWork
from mrcg.stages.counts import IndexCounts
from mrcg_jobs.job import Job, Outcome


def run(job: Job) -> Outcome:
    """Build the index over all scans of the corpus.

    Raises:
        TrainingError: recall@50 is below ``index.min_recall`` even with the largest nprobe or ef_search.
    """
    inputs = job.step.inputs
    work = IndexWork(
        store=job.store.url,
        corpus=inputs["corpus"],
        embeddings=inputs["embeddings"],
        base=inputs.get("indexes"),
        attempt=job.attempt.folder,
        settings=job.config.index,
        seed=job.config.seed,
        threads=job.config.compute.index_threads,
        purge=bool(job.step.settings.get("purge")),
        gpu=job.config.compute.use_gpu,
    )
    built = build_index(work, job.executor, job.progress)
    facts = built.facts
    sizes = [sum(part.live for part in facts.parts if part.shard == shard) for shard in range(facts.shards)]
    counts = IndexCounts(
        images=sum(sizes),
        kind=facts.shape.kind,
        shards=facts.shards,
        parts=len(facts.parts),
        shard_sizes=sizes,
        effort=facts.nprobe_or_ef,
        recall_at_50=facts.recall,
    )
    # A query is embedded like the vectors that it is compared with. Copied, so that an index serves without embeddings.
    embeddings = job.inputs["embeddings"]
    names = [name for name in (FACTS, TENSORS) if name in embeddings.names()]
    described = [job.attempt.write(name, embeddings.read_bytes(name)) for name in names]
    times = {f"{name}_seconds": seconds for name, seconds in built.seconds.items()}
    return Outcome(counts, [*built.files, *described], times)
