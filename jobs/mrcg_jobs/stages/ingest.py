"""Ingest: a source's files to a corpus, segment by segment through Ray Data.

What a task did is there when its note is, so a run that was killed reads only the segments that lack one. Rows
stay on the workers: the driver sees counts and the entries of files.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from mrcg.corpus.assembly import AssembledCorpus, assemble_corpus
from mrcg.corpus.ingest_worker import SegmentReader, SegmentWork
from mrcg.corpus.ingestion import ImagesWriter, Rules, ingest_files
from mrcg.corpus.listing import MEASURED, Plan, cut_segments, known_files, write_listing
from mrcg.corpus.reader import IMAGES
from mrcg.corpus.sources import Source, SourceFile, open_source
from mrcg.errors import MrcgError, SourceError
from mrcg.imaging.isolated_reader import IsolatedReader
from mrcg.pipeline.ancestry import source_name
from mrcg.privacy.pseudonyms import pseudonyms_from_environment
from mrcg.privacy.suppression import suppressed
from mrcg.storage import schemas
from mrcg.storage.filesystem import HashingFile
from mrcg.storage.manifest import FileEntry
from mrcg.storage.store import Store
from mrcg_jobs.job import Job, Outcome
from mrcg_jobs.ray_runtime.cluster import carry, each_row, own_errors
from mrcg_jobs.ray_runtime.progress import Watch, part_reporter


@dataclass(frozen=True)
class _Ingestion:
    """What every task of one ingestion knows: places, rules and the corpus that it grows from."""

    store: str
    source: Source
    base: str | None
    attempt: str
    output: str
    rules: Rules

    @property
    def listing(self) -> str:
        return f"{self.attempt}/work/listing.parquet"

    @property
    def kept(self) -> str:
        return f"{self.attempt}/work/kept.npy"

    def note(self, segment: int) -> str:
        return f"{self.attempt}/work/segment-{segment:05d}.json"

    def table(self, kind: str, segment: int) -> str:
        return f"{self.attempt}/work/{kind}-{segment:05d}.parquet"


def run(job: Job) -> Outcome:
    """Make the corpus.

    Raises:
        SourceError: nothing in the source can be used, too much of it cannot, or it changed meanwhile.
        UsageError: the source names patients and there is no key.
    """
    base = job.inputs.get("corpus")
    rules = Rules(
        settings=job.config.ingest,
        pseudonyms=pseudonyms_from_environment(),
        suppressed=suppressed(job.store),
        generation=0 if base is None else int(base.manifest.counts["generation"]) + 1,
    )
    version = None if base is None else base.manifest.version
    task = _Ingestion(job.store.url, job.source, version, job.attempt.folder, job.attempt.output, rules)
    with own_errors():
        plan = _plan(job, task)
        seconds = _read_segments(job, task, plan)
        job.progress(plan.files, plan.files, "grouping near-duplicates")
        joined: AssembledCorpus = ray.get(_join.remote(task, len(plan.segments)))
    _check(job, joined)
    counts = {
        **joined.counts,
        "files": job.source.files,
        "files_read": plan.files,
        "source": source_name(job.source, rules.pseudonyms),
    }
    return Outcome(counts, joined.files, {"reading_seconds": seconds})


def _plan(job: Job, task: _Ingestion) -> Plan:
    """Walk the source and cut what is new into segments; a resumed ingestion goes by the first one's."""
    place = f"{task.attempt}/work/plan.json"
    if job.store.exists(place):
        return Plan.from_json(job.store.read_json(place))
    job.progress(0, 0, "listing the source")
    files = open_source(task.source.location)
    base = job.inputs.get("corpus")
    known = np.empty(0, dtype=np.uint64) if base is None else known_files(base)
    with job.store.writer(task.listing) as sink:
        listing = write_listing(files, task.source.files, task.rules, known, sink)
    if listing.source != task.source:
        raise SourceError(f"--source {task.source.location} changed while the run started: run again")
    buffer = io.BytesIO()
    np.save(buffer, listing.kept, allow_pickle=False)
    job.store.write_bytes(task.kept, buffer.getvalue())
    # With few files the cut does not depend on what they give.
    size = _measure(task, listing.samples) if listing.files > MEASURED else 0.0
    plan = Plan(listing.files, cut_segments(listing.pages, listing.files, size, task.rules.settings.file_bytes))
    job.store.write_bytes(place, plan.to_bytes())
    return plan


def _measure(task: _Ingestion, samples: Sequence[SourceFile]) -> float:
    """Bytes of pixels that a file gives, from a few files."""
    sizes: list[int] = []

    @contextlib.contextmanager
    def nowhere(name: str) -> Iterator[HashingFile]:
        file = HashingFile(io.BytesIO())
        yield file
        sizes.append(file.size)

    files, settings = open_source(task.source.location), task.rules.settings
    guarded = IsolatedReader(settings, settings.seconds_per_file, settings.reader_bytes)
    with guarded as guard, ImagesWriter(nowhere, "sample", settings) as images:
        ingest_files(samples, files.read, guard.read, task.rules, images)
    return sum(sizes) / len(samples)


def _read_segments(job: Job, task: _Ingestion, plan: Plan) -> float:
    """Read what is not read yet; returns the seconds from the first segment's begin to the last one's end."""
    done = {number for number in range(len(plan.segments)) if job.store.exists(task.note(number))}
    pending = [
        {"number": number, "first": first, "last": last}
        for number, (first, last) in enumerate(plan.segments)
        if number not in done
    ]
    if not pending:
        return 0.0
    before = sum(int(job.store.read_json(task.note(number))["files_read"]) for number in done)
    begin, end = math.inf, 0.0
    readers = min(len(pending), max(1, int(ray.cluster_resources().get("CPU", 1))))
    with Watch(job.progress) as watch:
        watch.board.expect.remote(before, plan.files, "files read")
        dataset = ray.data.from_items(pending, override_num_blocks=len(pending)).map(
            _ReadSegment,
            fn_constructor_args=(task, watch.board),
            # All at once: what an actor needs is imported beside the others', not after them.
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=readers, initial_size=readers),
            num_cpus=1,
        )
        for row in each_row(dataset):
            begin, end = min(begin, row["begin"]), max(end, row["end"])
    return end - begin


class _ReadSegment:
    """Reads segments and writes their parts of the corpus, one after the other."""

    def __init__(self, task: _Ingestion, board: ray.actor.ActorHandle) -> None:
        self._task = task
        self._board = board
        self._store = Store(task.store)
        self._read = SegmentReader(task.rules.settings.reader_bytes)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._do(row)
        except MrcgError as error:
            return carry(error)

    def _do(self, row: dict[str, Any]) -> dict[str, Any]:
        begin, number, task, store = time.time(), int(row["number"]), self._task, self._store
        work = SegmentWork(
            store=task.store,
            source=task.source.location,
            listing=task.listing,
            pages=(row["first"], row["last"]),
            output=task.output,
            prefix=f"{IMAGES}g{task.rules.generation:03d}-{number:05d}",
            rules=task.rules,
        )
        segment = self._read(work, part_reporter(self._board, number))
        store.write_bytes(task.table("scans", number), schemas.to_parquet(segment.scans))
        store.write_bytes(task.table("quarantine", number), schemas.to_parquet(segment.quarantine))
        # The note comes last: it says that the rest is there.
        note = {"files_read": segment.files_read, "entries": [entry.model_dump() for entry in segment.files]}
        store.write_bytes(task.note(number), json.dumps(note).encode())
        self._board.part.remote(number, segment.files_read)
        return {"begin": begin, "end": time.time()}


@ray.remote(num_cpus=1)
def _join(task: _Ingestion, segments: int) -> AssembledCorpus:
    store = Store(task.store)

    def read(number: int) -> tuple[pa.Table, pa.Table, list[FileEntry]]:
        scans, quarantine = (
            schemas.from_parquet(store.read_bytes(task.table(kind, number))) for kind in ("scans", "quarantine")
        )
        entries = [FileEntry.model_validate(one) for one in store.read_json(task.note(number))["entries"]]
        return scans, quarantine, entries

    def write(name: str, data: bytes) -> FileEntry:
        store.write_bytes(f"{task.output}/{name}", data)
        return FileEntry.of(name, data)

    base = None if task.base is None else store.artefact("corpus", task.base)
    kept = np.load(io.BytesIO(store.read_bytes(task.kept)), allow_pickle=False)
    return assemble_corpus(map(read, range(segments)), base, kept, task.rules, write)


def _check(job: Job, joined: AssembledCorpus) -> None:
    """Whether the source is good enough to make a corpus of."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in joined.counts["reasons"].items())
    if not joined.counts["images"]:
        first = "" if joined.first_bad is None else f" (first: {joined.first_bad[0]}, {joined.first_bad[1]})"
        raise SourceError(
            f"--source {job.source.location}: none of its {job.source.files} files is a usable image{first}"
        )
    fraction, limit = joined.bad_files / job.source.files, job.config.checks.max_bad_fraction
    if fraction > limit:
        raise SourceError(
            f"--source {job.source.location}: {joined.bad_files} of {job.source.files} files are bad "
            f"({100 * fraction:.1f} %, the limit is {100 * limit:g} %): {reasons}; "
            "mend them, or raise --max-bad-fraction: what was read is not read again"
        )
