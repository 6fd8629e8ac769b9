"""Input and output of a stage's job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mrcg.config.settings import Config
from mrcg.corpus.sources import Source
from mrcg.execution.executor import Executor, Progress
from mrcg.pipeline.plan import Step
from mrcg.stages.counts import Counts
from mrcg.storage.attempts import Attempt
from mrcg.storage.manifest import FileEntry
from mrcg.storage.store import Artefact, Store


@dataclass(frozen=True)
class Job:
    """One stage to run: its inputs, the attempt to write to and the executor for its tasks."""

    store: Store
    config: Config
    source: Source
    step: Step
    inputs: Mapping[str, Artefact]
    attempt: Attempt
    executor: Executor
    progress: Progress


@dataclass(frozen=True)
class Outcome:
    """The result of a stage: counts for the manifest, files in the attempt's output, times for ``run.json``."""

    counts: Counts
    files: Sequence[FileEntry]
    times: Mapping[str, float] = field(default_factory=dict)


def write_output(store: Store, output: str, name: str, data: bytes) -> dict[str, Any]:
    """Write an output file from a worker and return its manifest entry as a row."""
    store.write_bytes(f"{output}/{name}", data)
    return FileEntry.of(name, data).model_dump()


def entries(rows: Sequence[Mapping[str, Any]]) -> list[FileEntry]:
    """Return the manifest entries of rows that ``write_output`` returned."""
    return [FileEntry(name=row["name"], size=row["size"], sha256=row["sha256"]) for row in rows]
