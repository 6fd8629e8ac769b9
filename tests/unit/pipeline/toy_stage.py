"""The module of a stage that a test adds: it counts the labels of a corpus."""

from __future__ import annotations

import json
from collections import Counter

from mrcg.corpus.reader import read_scans
from mrcg.stages.counts import Counts
from mrcg.stages.registry import Stage
from mrcg_jobs.job import Job, Outcome


class LabelCounts(Counts):
    """Number of labels."""

    labels: int


STAGE = Stage(
    name="count-labels",
    kind="labels",
    schema=1,
    counts=LabelCounts,
    module=__name__,
    help="Count the labels of a corpus.",
    inputs=lambda config: ("corpus",),
    settings=("seed",),
    local=True,
)


def run(job: Job) -> Outcome:
    """Count."""
    found = Counter(read_scans(job.inputs["corpus"], ["label"])["label"].to_pylist())
    entry = job.attempt.write("labels.json", json.dumps(dict(sorted(found.items()))).encode())
    return Outcome(LabelCounts(labels=len(found)), [entry])
