"""Ingest the files of a source into a corpus, in segments, on Ray Data.

A task writes a note when its segment is complete, so an interrupted run reads only the segments without a note. Rows
stay on the workers: the driver receives only counts and file entries.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from mrcg.corpus.assembly import AssembledCorpus, assemble_corpus, labels_that_differ_by_case
from mrcg.corpus.ingest_worker import SegmentReader, SegmentWork
from mrcg.corpus.ingestion import ImagesWriter, Rules, ingest_files
from mrcg.corpus.listing import MEASURE_ABOVE_FILES, Plan, cut_segments, known_files, write_listing
from mrcg.corpus.reader import IMAGES, scans_in
from mrcg.corpus.sources import Source, SourceFile, open_source
from mrcg.errors import MrcgError, SourceError, to_row
from mrcg.imaging.isolated_reader import IsolatedReader
from mrcg.pipeline.ancestry import source_name
from mrcg.privacy.pseudonyms import pseudonyms_from_environment
from mrcg.privacy.suppression import suppressed
from mrcg.stages.counts import CorpusCounts
from mrcg.storage import schemas
from mrcg.storage.filesystem import HashingFile
from mrcg.storage.manifest import FileEntry
from mrcg.storage.store import Store
from mrcg_jobs.job import Job, Outcome
from mrcg_jobs.ray_runtime.cluster import each_row, own_errors
from mrcg_jobs.ray_runtime.progress import Watch, part_reporter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Ingestion:
    """What every task of an ingestion needs: store, source, rules, base corpus and paths in the attempt."""

    store: str
    source: Source
    base: str | None
    attempt: str
    output: str
    rules: Rules

    @property
    def work(self) -> str:
        # Earlier versions encrypted listings in another way. Their attempts are begun again as a whole: another listing
        # may be cut into other segments, so none of what was read fits.
        return f"{self.attempt}/work" if self.rules.pseudonyms is None else f"{self.attempt}/work-aes256gcm"

    @property
    def listing(self) -> str:
        return f"{self.work}/listing.parquet"

    @property
    def plan(self) -> str:
        return f"{self.work}/plan.json"

    @property
    def kept(self) -> str:
        return f"{self.work}/kept.npy"

    def note(self, segment: int) -> str:
        return f"{self.work}/segment-{segment:05d}.json"

    def table(self, kind: str, segment: int) -> str:
        return f"{self.work}/{kind}-{segment:05d}.parquet"


def run(job: Job) -> Outcome:
    """Ingest the source.

    Raises:
        SourceError: no file of the source is usable, too many are bad, or the source changed during the run.
        UsageError: the source names patients and no pseudonym key is set.
    """
    base = job.inputs.get("corpus")
    rules = Rules(
        settings=job.config.ingest,
        pseudonyms=pseudonyms_from_environment(),
        suppressed=suppressed(job.store),
        generation=0 if base is None else base.manifest.counts_as(CorpusCounts).generation + 1,
    )
    version = None if base is None else base.manifest.version
    task = _Ingestion(job.store.url, job.source, version, job.attempt.folder, job.attempt.output, rules)
    with own_errors():
        plan = _plan(job, task)
        seconds = _read_segments(job, task, plan)
        job.progress(plan.files, plan.files, "grouping near-duplicates")
        corpus: AssembledCorpus = ray.get(_assemble.remote(task, len(plan.segments)))
    _check_bad_files(job, corpus)
    for names in labels_that_differ_by_case(corpus.counts.classes):
        log.warning("labels that differ only by case are different classes: %s", ", ".join(names))
    counts = corpus.counts.model_copy(
        update={
            "files": job.source.files,
            "files_read": plan.files,
            "source": source_name(job.source, rules.pseudonyms),
        }
    )
    return Outcome(counts, corpus.files, {"reading_seconds": seconds})


def _plan(job: Job, task: _Ingestion) -> Plan:
    """List the new files of the source and cut them into segments; a resumed ingestion reuses the stored plan."""
    if job.store.exists(task.plan):
        return Plan.from_json(job.store.read_json(task.plan))
    job.progress(0, 0, "listing the source")
    files = open_source(task.source.location)
    base = job.inputs.get("corpus")
    known = np.empty(0, dtype=np.uint64) if base is None else known_files(base)
    with job.store.writer(task.listing) as sink:
        listing = write_listing(files, task.source.files, task.rules, known, sink)
    if listing.source != task.source:
        raise SourceError(f"--source {task.source.location} changed while the run started: run the same command again")
    buffer = io.BytesIO()
    np.save(buffer, listing.kept, allow_pickle=False)
    job.store.write_bytes(task.kept, buffer.getvalue())
    # For few files, the number of segments does not depend on their size.
    size = _mean_pixel_bytes(task, listing.samples) if listing.files > MEASURE_ABOVE_FILES else 0.0
    plan = Plan(listing.files, cut_segments(listing.pages, listing.files, size, task.rules.settings.file_bytes))
    job.store.write_bytes(task.plan, plan.to_bytes())
    return plan


def _mean_pixel_bytes(task: _Ingestion, samples: Sequence[SourceFile]) -> float:
    """Return the mean bytes of pixels per source file, measured by ingesting some files without keeping the result."""
    sizes: list[int] = []

    @contextlib.contextmanager
    def discard(name: str) -> Iterator[HashingFile]:
        file = HashingFile(io.BytesIO())
        yield file
        sizes.append(file.size)

    files, settings = open_source(task.source.location), task.rules.settings
    guarded = IsolatedReader(settings, settings.seconds_per_file, settings.reader_bytes)
    with guarded as guard, ImagesWriter(discard, "sample", settings) as images:
        ingest_files(samples, files.read, guard.read, task.rules, images)
    return sum(sizes) / len(samples)


def _read_segments(job: Job, task: _Ingestion, plan: Plan) -> float:
    """Read the segments without a note; return the seconds from the start of the first to the end of the last."""
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
            # All actors start at once, so that their imports run in parallel.
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=readers, initial_size=readers),
            num_cpus=1,
        )
        for row in each_row(dataset):
            begin, end = min(begin, row["begin"]), max(end, row["end"])
    return end - begin


class _ReadSegment:
    """Actor that reads segments, one after the other, and writes their files of the corpus."""

    def __init__(self, task: _Ingestion, board: ray.actor.ActorHandle) -> None:
        self._task = task
        self._board = board
        self._store = Store(task.store)
        self._reader = SegmentReader(task.rules.settings.reader_bytes)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._read_segment(row)
        except MrcgError as error:
            return to_row(error)

    def _read_segment(self, row: dict[str, Any]) -> dict[str, Any]:
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
        segment = self._reader(work, part_reporter(self._board, number))
        store.write_bytes(task.table("scans", number), schemas.to_parquet(segment.scans))
        store.write_bytes(task.table("quarantine", number), schemas.to_parquet(segment.quarantine))
        # The note comes last: it marks the segment as complete.
        note = {"files_read": segment.files_read, "entries": [entry.model_dump() for entry in segment.files]}
        store.write_bytes(task.note(number), json.dumps(note).encode())
        self._board.part.remote(number, segment.files_read)
        return {"begin": begin, "end": time.time()}


@ray.remote(num_cpus=1)
def _assemble(task: _Ingestion, segments: int) -> AssembledCorpus:
    store = Store(task.store)

    def read(number: int) -> tuple[pa.Table, pa.Table, list[FileEntry]]:
        # An earlier version of MRCG may have begun this attempt.
        scans = scans_in(store.read_bytes(task.table("scans", number)))
        quarantine = schemas.from_parquet(store.read_bytes(task.table("quarantine", number)))
        entries = [FileEntry.model_validate(entry) for entry in store.read_json(task.note(number))["entries"]]
        return scans, quarantine, entries

    def write(name: str, data: bytes) -> FileEntry:
        store.write_bytes(f"{task.output}/{name}", data)
        return FileEntry.of(name, data)

    base = None if task.base is None else store.artefact("corpus", task.base)
    kept = np.load(io.BytesIO(store.read_bytes(task.kept)), allow_pickle=False)
    return assemble_corpus(map(read, range(segments)), base, kept, task.rules, write)


def _check_bad_files(job: Job, corpus: AssembledCorpus) -> None:
    """Check that the corpus has images and that the fraction of bad files is within the limit."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in corpus.counts.reasons.items())
    if not corpus.counts.images:
        first = "" if corpus.first_bad is None else f" (first: {corpus.first_bad[0]}, {corpus.first_bad[1]})"
        raise SourceError(
            f"--source {job.source.location}: none of its {job.source.files} files is a usable image{first}"
        )
    fraction, limit = corpus.bad_files / job.source.files, job.config.checks.max_bad_fraction
    if fraction > limit:
        raise SourceError(
            f"--source {job.source.location}: {corpus.bad_files} of {job.source.files} files are bad "
            f"({100 * fraction:.1f} %, the limit is {100 * limit:g} %): {reasons}; "
            "fix them, or raise --max-bad-fraction: files that were read are not read again"
        )
