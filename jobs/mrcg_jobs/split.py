"""Split: the side table of the protocol. Small work on one table, so it runs in the driver."""

from __future__ import annotations

from mrcg import schemas
from mrcg.corpus import SPLITS, Corpus
from mrcg.splits import make_splits
from mrcg_jobs.job import Job, Outcome


def run(job: Job) -> Outcome:
    """Make the splits."""
    table = make_splits(Corpus(job.inputs["corpus"]).scans, job.config.split, job.config.seed)
    names = table["split"].to_pylist()
    counts = {
        "protocol": job.config.split.protocol,
        **{name: names.count(name) for name in ("train", "test", "none")},
        "validation": sum(table["validation"].to_pylist()),
    }
    return Outcome(counts, [job.attempt.write(SPLITS, schemas.to_parquet(table))])
