"""Ingest: a source's files to a corpus, chunk by chunk through Ray Data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray.data

from mrcg import schemas
from mrcg.config import IngestSettings
from mrcg.corpus import QUARANTINE, SCANS
from mrcg.errors import SourceError
from mrcg.ingest import ingest_chunk, join_chunks
from mrcg.source import SourceFile, list_source, read_file
from mrcg.store import Store
from mrcg_jobs.job import Job, Outcome, entries, write_output
from mrcg_jobs.runtime import own_errors


@dataclass(frozen=True)
class _ChunkTask:
    """Reads one chunk of the source and writes its part of the corpus."""

    store: str
    source: str
    output: str
    work: str
    settings: IngestSettings

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        files = [SourceFile(**file) for file in row["files"]]
        number = int(row["number"])
        name = f"images/{number:05d}.parquet"
        chunk = ingest_chunk(files, lambda key: read_file(self.source, key), self.settings, name)
        store = Store(self.store)
        # Metadata go beside the output: they become one table when the whole corpus is grouped.
        store.write_bytes(f"{self.work}/scans-{number:05d}.parquet", schemas.to_parquet(chunk.scans))
        store.write_bytes(f"{self.work}/quarantine-{number:05d}.parquet", schemas.to_parquet(chunk.quarantine))
        entry = write_output(
            store, self.output, name, schemas.to_parquet(chunk.images, self.settings.images_per_row_group)
        )
        return {**entry, "files": len(files), "images": chunk.images.num_rows, "number": number}


def run(job: Job) -> Outcome:
    """Make the corpus.

    Raises:
        SourceError: nothing in the source can be used, or it changed since its version was derived.
    """
    settings = job.config.ingest
    listed, files = list_source(job.source)
    if listed.listing_digest != job.step.settings["listing"]:
        raise SourceError(f"--source {job.source} changed while the run started: run again")
    work = f"{job.attempt.folder}/work"
    task = _ChunkTask(job.store.url, listed.location, job.attempt.output, work, settings)
    chunks = _chunks(files, settings.images_per_file)
    done, rows = 0, []
    dataset = ray.data.from_items(chunks, override_num_blocks=len(chunks)).map(task)
    with own_errors():
        for row in dataset.iter_rows():
            rows.append(row)
            done += row["files"]
            job.progress(done, len(files), "files read")
    rows.sort(key=lambda row: row["number"])
    return _finish(job, rows, work)


def _finish(job: Job, rows: Sequence[dict[str, Any]], work: str) -> Outcome:
    def read(kind: str) -> list[Any]:
        names = [f"{work}/{kind}-{row['number']:05d}.parquet" for row in rows]
        return [schemas.from_parquet(job.store.read_bytes(name)) for name in names]

    quarantine = pa.concat_tables(read("quarantine"))
    images = sum(row["images"] for row in rows)
    if not images:
        first = quarantine.slice(0, 1).to_pylist()[0]
        raise SourceError(
            f"--source {job.source}: none of its {quarantine.num_rows} files is a usable image "
            f"(first: {first['source_key']}, {first['reason']})"
        )
    scans = join_chunks(read("scans"), job.config.ingest)
    labels = sorted({label for label in scans["label"].to_pylist() if label is not None})
    files = [
        *entries([row for row in rows if row["images"]]),
        job.attempt.write(SCANS, schemas.to_parquet(scans)),
        job.attempt.write(QUARANTINE, schemas.to_parquet(quarantine)),
    ]
    counts = {
        "images": images,
        "quarantined": quarantine.num_rows,
        "groups": len(set(scans["group_id"].to_pylist())),
        "distinct": len(set(scans["pixel_hash"].to_pylist())),
        "classes": {label: scans["label"].to_pylist().count(label) for label in labels},
    }
    return Outcome(counts, files)


def _chunks(files: Sequence[SourceFile], size: int) -> list[dict[str, Any]]:
    parts = [files[start : start + size] for start in range(0, len(files), size)]
    return [{"number": number, "files": [vars(file) for file in part]} for number, part in enumerate(parts)]
