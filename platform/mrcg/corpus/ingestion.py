"""Ingestion as plain classes: files of a source in, rows of a corpus out (DESIGN §2, §5).

What identifies people is turned into pseudonyms here, before the first byte is written.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mrcg.config.settings import IngestSettings
from mrcg.corpus.reader import pixels_writer
from mrcg.corpus.sources import SourceFile
from mrcg.errors import ImageError
from mrcg.imaging.near_duplicates import difference_hash
from mrcg.imaging.readers import IDENTIFYING, format_of
from mrcg.imaging.sequences import sequence_of_text
from mrcg.imaging.slices import Facts, Reading, Slice, image_id, pixel_hash
from mrcg.privacy.pseudonyms import Pseudonyms, key_needed
from mrcg.privacy.suppression import IMAGE, PATIENT, PIXELS, token
from mrcg.storage import schemas
from mrcg.storage.filesystem import HashingFile
from mrcg.storage.manifest import FileEntry

#: Reasons that say nothing bad of a source: a directory of files, a patient who wants to be forgotten.
HARMLESS = frozenset({"dicomdir", "suppressed"})

Open = Callable[[str], AbstractContextManager[HashingFile]]


@dataclass(frozen=True)
class Rules:
    """What one ingestion goes by."""

    settings: IngestSettings
    pseudonyms: Pseudonyms | None
    suppressed: frozenset[str]
    generation: int

    def stored_key(self, key: str) -> str:
        """A source path as it is stored: under a key only its keyed hash, for paths hold names."""
        return key if self.pseudonyms is None else self.pseudonyms.name("path", key)


@dataclass(frozen=True)
class Segment:
    """What became of some files: tables of ``schemas.SCANS`` and ``QUARANTINE``, and the files of pixels."""

    scans: pa.Table
    quarantine: pa.Table
    files: Sequence[FileEntry]
    files_read: int


def ingest_files(
    files: Iterable[SourceFile],
    read: Callable[[SourceFile], bytes],
    decode: Callable[[bytes], Reading],
    rules: Rules,
    images: ImagesWriter,
) -> Segment:
    """Read, decode, make nameless, hash and write some files.

    A file that cannot be used becomes a row of the quarantine with its reason; none stops the job.

    Args:
        files: of the source.
        read: content of a file; OSError where it cannot be read.
        decode: slices of a content: ``readers.read``, or a ``Guard``'s.
        rules: settings, key and suppression list.
        images: takes the pixels.

    Raises:
        UsageError: a file names patients and there is no key.
    """
    scans: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    count = 0
    for file in files:
        count += 1
        try:
            reading = _read(file, read, decode, rules)
        except ImageError as error:
            refused.append(_refusal(file, rules, None, error.reason, str(error)))
            continue
        kept = 0
        for one in reading.slices:
            row = _scan_row(file, one, rules)
            if is_suppressed(row, rules):
                continue
            row["file"], row["file_row"] = images.add(row["image_id"], one)
            scans.append(row)
            kept += 1
        if not kept:
            refused.append(_refusal(file, rules, None, "suppressed", "on the suppression list"))
            continue
        refused += [_refusal(file, rules, one.frame, one.reason, one.detail) for one in reading.refused]
    return Segment(
        pa.Table.from_pylist(scans, schemas.SCANS),
        pa.Table.from_pylist(refused, schemas.QUARANTINE),
        images.finish(),
        count,
    )


class ImagesWriter:
    """Writes pixels to Parquet files of about a given size, in row groups of a few images.

    Args:
        open_file: opens an output by its name.
        prefix: of the names: ``<prefix>-<number>.parquet``.
        settings: sizes of files and row groups.
    """

    def __init__(self, open_file: Open, prefix: str, settings: IngestSettings) -> None:
        self._open = open_file
        self._prefix = prefix
        self._settings = settings
        self._files: list[FileEntry] = []
        self._waiting: list[tuple[str, int, int, bytes]] = []
        self._rows = 0
        self._stack = contextlib.ExitStack()
        self._sink: HashingFile | None = None
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> ImagesWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # After an error the file that is open must not appear.
        self._stack.__exit__(kind, error, traceback)

    def add(self, ident: str, one: Slice) -> tuple[str, int]:
        """Write one image; returns the file it is in and its row there."""
        place = self._name(), self._rows
        self._waiting.append((ident, *one.pixels.shape, one.pixels.tobytes()))
        self._rows += 1
        if len(self._waiting) == self._settings.images_per_row_group:
            self._write_group()
            assert self._sink is not None
            if self._sink.size >= self._settings.file_bytes:
                self._end_file()
        return place

    def finish(self) -> Sequence[FileEntry]:
        """End the last file; the entries of all."""
        if self._rows:
            self._write_group()
            self._end_file()
        return self._files

    def _name(self) -> str:
        return f"{self._prefix}-{len(self._files):02d}.parquet"

    def _write_group(self) -> None:
        if not self._waiting:
            return
        if self._writer is None:
            self._sink = self._stack.enter_context(self._open(self._name()))
            self._writer = pixels_writer(self._sink)
        ids, heights, widths, pixels = zip(*self._waiting, strict=True)
        table = pa.table(
            {"image_id": list(ids), "height": list(heights), "width": list(widths), "pixels": list(pixels)},
            schema=schemas.IMAGES,
        )
        self._writer.write_table(table, row_group_size=len(ids))
        self._waiting.clear()

    def _end_file(self) -> None:
        assert self._writer is not None
        assert self._sink is not None
        self._writer.close()
        self._stack.close()
        self._files.append(self._sink.entry(self._name()))
        self._writer, self._sink, self._rows = None, None, 0


def _read(
    file: SourceFile, read: Callable[[SourceFile], bytes], decode: Callable[[bytes], Reading], rules: Rules
) -> Reading:
    if file.size < 0:
        raise ImageError("missing", "there is no such file")
    if file.size > rules.settings.max_file_bytes:
        raise ImageError("too_many_bytes", f"{file.size:,} bytes, the limit is {rules.settings.max_file_bytes:,}")
    try:
        data = read(file)
    except OSError as error:
        raise ImageError("unreadable", f"it cannot be read ({type(error).__name__})") from error
    if rules.pseudonyms is None and (name := format_of(data)) in IDENTIFYING:
        raise key_needed(f"{'DICOM' if name == 'dicom' else 'MATLAB'} files")
    return decode(data)


def _scan_row(file: SourceFile, one: Slice, rules: Rules) -> dict[str, Any]:
    pixels = pixel_hash(one.pixels)
    key = rules.stored_key(file.key)
    facts = one.facts
    return {
        "image_id": image_id(key, one.frame, pixels),
        "label": _label(file, facts, rules),
        "group_id": "",  # these three follow from the whole corpus
        "joins": [],
        "cluster_id": "",
        "generation": rules.generation,
        "source_key": key,
        "stamp": file.stamp,
        "frame": one.frame,
        "source_split": file.split,
        "fold": file.fold,
        "tenant": rules.settings.tenant,
        "site": file.site or rules.settings.site,
        "plane": file.plane or facts.plane,
        "sequence": file.sequence or facts.sequence or _sequence_of_name(file, facts),
        "spacing_mm": facts.spacing,
        "position_mm": facts.position,
        "pixel_hash": pixels,
        "difference_hash": difference_hash(one.pixels),
        **_pseudonymous(file, facts, rules.pseudonyms),
    }


def _pseudonymous(file: SourceFile, facts: Facts, pseudonyms: Pseudonyms | None) -> dict[str, Any]:
    """Columns that come from identifiers: only through a key."""
    acquired = datetime.date.fromisoformat(file.acquired) if file.acquired else facts.acquired
    columns: dict[str, Any] = {"year": None if acquired is None else acquired.year}
    if pseudonyms is None:
        assert file.patient is None
        assert facts.patient is None
        return columns
    patient, study = file.patient or facts.patient, file.study or facts.study
    for kind, value in (("patient", patient), ("study", study), ("accession", facts.accession)):
        columns[kind] = None if value is None else pseudonyms.name(kind, value)
    for kind, value in (("series", facts.series), ("instance", facts.instance)):
        columns[kind] = None if value is None else pseudonyms.uid(kind, value)
    whose = patient or study
    if acquired is not None and whose is not None:
        columns["acquired"] = pseudonyms.shifted(acquired, whose)
    return columns


def _label(file: SourceFile, facts: Facts, rules: Rules) -> str | None:
    """A label that a manifest or the file itself states, or a folder's name where that is known to be one.

    With a key, folders may be named after patients: only those that ``ingest.classes`` lists are labels.
    """
    if file.labelled:
        return file.label
    if facts.label is not None:
        return facts.label
    classes = rules.settings.classes
    if classes is None:
        return file.label if rules.pseudonyms is None else None
    return file.label if file.label in classes else None


def _sequence_of_name(file: SourceFile, facts: Facts) -> str | None:
    # A NIfTI header does not say; names do (sub-01_T1w.nii.gz). One of four words is kept of it.
    volume = facts.plane is not None and facts.series is None
    return sequence_of_text(file.key.rsplit("/", 1)[-1]) if volume else None


def is_suppressed(row: dict[str, Any], rules: Rules) -> bool:
    """Whether a scan's id, pixels or patient are on the suppression list."""
    if not rules.suppressed:
        return False
    asked = [(IMAGE, row["image_id"]), (PIXELS, row["pixel_hash"])]
    if row.get("patient"):
        asked.append((PATIENT, row["patient"]))
    return any(token(rules.pseudonyms, kind, value) in rules.suppressed for kind, value in asked)


def _refusal(file: SourceFile, rules: Rules, frame: int | None, reason: str, detail: str) -> dict[str, Any]:
    return {
        "source_key": rules.stored_key(file.key),
        "stamp": file.stamp,
        "frame": frame,
        "reason": reason,
        "detail": detail,
    }
