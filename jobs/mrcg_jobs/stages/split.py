"""Split the corpus by the protocol. The work is small, on one table, so it runs in the driver."""

from __future__ import annotations

from collections.abc import Sequence

from mrcg.corpus.reader import read_scans
from mrcg.corpus.splits import SPLITS, make_splits
from mrcg.stages.counts import SplitCounts
from mrcg.storage import schemas
from mrcg_jobs.job import Job, Outcome


def run(job: Job) -> Outcome:
    """Assign scans to gallery and test queries, and write the table of splits."""
    scans = read_scans(job.inputs["corpus"])
    table = make_splits(scans, job.config.split, job.config.seed)
    names = table["split"].to_pylist()
    counts = SplitCounts(
        protocol=job.config.split.protocol,
        train=names.count("train"),
        test=names.count("test"),
        none=names.count("none"),
        validation=sum(table["validation"].to_pylist()),
        classes=_by_class(scans["label"].to_pylist(), names),
    )
    return Outcome(counts, [job.attempt.write(SPLITS, schemas.to_parquet(table))])


def _by_class(labels: Sequence[str | None], names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Count the scans of each class in each part: parts are drawn by key, so small classes may be split unevenly."""
    counts: dict[str, dict[str, int]] = {}
    for label, name in zip(labels, names, strict=True):
        if label is not None:
            of_class = counts.setdefault(label, {"train": 0, "test": 0, "none": 0})
            of_class[name] += 1
    return dict(sorted(counts.items()))
