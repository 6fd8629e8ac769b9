"""Ingestion: turn source files into rows and pixels of a corpus.

Identifiers of people are replaced by pseudonyms here, before anything is written (docs/corpus.md#de-identification).
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from fnmatch import translate
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mrcg.config.settings import IngestSettings
from mrcg.corpus.folder_walk import UNUSABLE, unusable
from mrcg.corpus.reader import pixels_writer
from mrcg.corpus.sources import SourceFile, lesion_columns
from mrcg.errors import ImageError
from mrcg.imaging.lesion import Lesion, first_known
from mrcg.imaging.near_duplicates import difference_hash
from mrcg.imaging.readers import IDENTIFYING, format_of
from mrcg.imaging.sequences import sequence_of_text
from mrcg.imaging.sidecar import MAX_BYTES as SIDECAR_BYTES
from mrcg.imaging.sidecar import read_sidecar, sidecar_key
from mrcg.imaging.slices import Reading, ScanFacts, Slice, image_id, pixel_hash
from mrcg.privacy.identity import authority_of, earlier_forms, issuer_name, patient_id
from mrcg.privacy.pseudonyms import Pseudonyms, missing_key_error
from mrcg.privacy.suppression import IMAGE, PATIENT, PIXELS, token
from mrcg.storage import schemas
from mrcg.storage.filesystem import HashingFile
from mrcg.storage.manifest import FileEntry

#: Quarantine reasons that do not count as bad files: they are no scans, or on the suppression list.
HARMLESS_REASONS = frozenset({"dicomdir", "not_a_file", "not_a_scan", "suppressed"})

OpenOutput = Callable[[str], AbstractContextManager[HashingFile]]


@dataclass(frozen=True)
class Rules:
    """Settings, key, suppression list and generation of one ingestion.

    Attributes:
        settings: of reading, checking and writing.
        pseudonyms: made with the key; None without a key.
        suppressed: tokens on the suppression list.
        generation: of the new corpus, 0 for the first.
    """

    settings: IngestSettings
    pseudonyms: Pseudonyms | None
    suppressed: frozenset[str]
    generation: int

    def litter(self, key: str) -> str | None:
        """Return why the name of a file says that it is no scan, by the settings; None for all others."""
        name, suffix = key.lower(), PurePosixPath(key).suffix.lower()
        kind = f"a file of type {suffix}" if re.fullmatch(r"\.[a-z0-9]{1,5}", suffix) else "a file of another type"
        if _matches(name, self.settings.exclude):
            return f"{kind}, left out by ingest.exclude"
        if self.settings.include and not _matches(name, self.settings.include):
            return f"{kind}, not in ingest.include"
        return None

    def stored_key(self, key: str) -> str:
        """Return a source path as it is stored: with a key only its keyed hash, because paths may contain names."""
        return key if self.pseudonyms is None else self.pseudonyms.name("path", key)


@dataclass(frozen=True)
class Segment:
    """Result of ingesting some files: tables of ``schemas.SCANS`` and ``QUARANTINE``, and the pixel files."""

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
    read_beside: Callable[[str, int], bytes | None] = lambda key, most: None,
) -> Segment:
    """Read, decode, de-identify, hash and write some files.

    A file that cannot be used becomes a quarantine row with its reason; it does not stop the job.

    Args:
        files: of the source.
        read: returns the content of a file; raises OSError if it cannot be read.
        decode: returns the slices of a content, such as ``readers.read`` or ``IsolatedReader.read``.
        rules: of this ingestion.
        images: writes the pixels.
        read_beside: returns the content of another file by key and size limit, None if there is none such.

    Raises:
        UsageError: a file may name patients and no pseudonym key is set.
    """
    scans: list[dict[str, Any]] = []
    quarantined: list[dict[str, Any]] = []
    files_read = 0
    for file in files:
        if (kind := rules.litter(file.key)) is not None:
            quarantined.append(_quarantine_row(file, rules, None, "not_a_scan", kind))
            continue
        files_read += 1
        try:
            reading = _read(file, read, decode, rules)
        except ImageError as error:
            quarantined.append(_quarantine_row(file, rules, None, error.reason, str(error)))
            continue
        kept, beside = 0, _sidecar(file, read_beside)
        # A manifest states the lesion of a file: of which of several slices is not known.
        stated = file.lesion if len(reading.slices) + len(reading.refused) == 1 else None
        for image in _with_facts(reading.slices, beside):
            row = _scan_row(file, image, stated, rules)
            if is_suppressed(row, rules, _stated_patient(file, image.facts, rules)[0]):
                continue
            row["file"], row["file_row"] = images.add(row["image_id"], image)
            scans.append(row)
            kept += 1
        if not kept:
            quarantined.append(_quarantine_row(file, rules, None, "suppressed", "on the suppression list"))
            continue
        quarantined += [
            _quarantine_row(file, rules, refusal.frame, refusal.reason, refusal.detail) for refusal in reading.refused
        ]
    return Segment(
        pa.Table.from_pylist(scans, schemas.SCANS),
        pa.Table.from_pylist(quarantined, schemas.QUARANTINE),
        images.finish(),
        files_read,
    )


class ImagesWriter:
    """Writes pixels to Parquet files of about ``file_bytes``, in row groups of ``images_per_row_group`` images.

    A context manager; after an error the open file is not published.

    Args:
        open_output: opens an output file by name.
        prefix: of the names: ``<prefix>-<number>.parquet``.
        settings: sizes of files and row groups.
    """

    def __init__(self, open_output: OpenOutput, prefix: str, settings: IngestSettings) -> None:
        self._open = open_output
        self._prefix = prefix
        self._settings = settings
        self._files: list[FileEntry] = []
        self._pending: list[tuple[str, int, int, bytes]] = []
        self._rows = 0
        self._stack = contextlib.ExitStack()
        self._sink: HashingFile | None = None
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> ImagesWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # After an error the open file must not be published.
        self._stack.__exit__(kind, error, traceback)

    def add(self, ident: str, image: Slice) -> tuple[str, int]:
        """Write an image and return the name of its file and its row in that file."""
        location = self._name(), self._rows
        self._pending.append((ident, *image.pixels.shape, image.pixels.tobytes()))
        self._rows += 1
        if len(self._pending) == self._settings.images_per_row_group:
            self._write_group()
            assert self._sink is not None
            if self._sink.size >= self._settings.file_bytes:
                self._end_file()
        return location

    def finish(self) -> Sequence[FileEntry]:
        """Close the last file and return the entries of all files."""
        if self._rows:
            self._write_group()
            self._end_file()
        return self._files

    def _name(self) -> str:
        return f"{self._prefix}-{len(self._files):02d}.parquet"

    def _write_group(self) -> None:
        if not self._pending:
            return
        if self._writer is None:
            self._sink = self._stack.enter_context(self._open(self._name()))
            self._writer = pixels_writer(self._sink)
        ids, heights, widths, pixels = zip(*self._pending, strict=True)
        table = pa.table(
            {"image_id": list(ids), "height": list(heights), "width": list(widths), "pixels": list(pixels)},
            schema=schemas.IMAGES,
        )
        self._writer.write_table(table, row_group_size=len(ids))
        self._pending.clear()

    def _end_file(self) -> None:
        assert self._writer is not None
        assert self._sink is not None
        self._writer.close()
        self._stack.close()
        self._files.append(self._sink.entry(self._name()))
        self._writer, self._sink, self._rows = None, None, 0


@functools.lru_cache(maxsize=8)
def _pattern(globs: tuple[str, ...]) -> re.Pattern[str]:
    """Return what matches a name that one of some globs matches: one search, however many globs there are."""
    return re.compile("|".join(translate(glob.lower()) for glob in globs) or r"(?!)")


def _matches(name: str, globs: tuple[str, ...]) -> bool:
    """Return whether a lower-case path matches a glob; one without a slash is compared with each of its parts."""
    of_paths = tuple(glob for glob in globs if "/" in glob)
    of_parts = tuple(glob for glob in globs if "/" not in glob)
    return bool(_pattern(of_paths).match(name)) or any(_pattern(of_parts).match(part) for part in name.split("/"))


def _read(
    file: SourceFile, read: Callable[[SourceFile], bytes], decode: Callable[[bytes], Reading], rules: Rules
) -> Reading:
    if file.size < 0:
        raise ImageError(file.stamp, UNUSABLE[file.stamp])
    if file.size > rules.settings.max_file_bytes:
        raise ImageError("too_many_bytes", f"{file.size:,} bytes, the limit is {rules.settings.max_file_bytes:,}")
    try:
        data = read(file)
    except OSError as error:
        reason = unusable(error)
        raise ImageError(reason, f"{UNUSABLE[reason]} ({type(error).__name__})") from error
    if file.size and len(data) != file.size:
        raise ImageError("changed", "it changed while it was read: the next ingestion reads it again")
    if rules.pseudonyms is None and (name := format_of(data)) in IDENTIFYING:
        raise missing_key_error(f"{'DICOM' if name == 'dicom' else 'MATLAB'} files")
    return decode(data)


def _sidecar(file: SourceFile, read_beside: Callable[[str, int], bytes | None]) -> ScanFacts:
    """Return what the sidecar of a volume says; nothing for other files, and without one."""
    key = sidecar_key(file.key)
    data = None if key is None else read_beside(key, SIDECAR_BYTES)
    return ScanFacts() if data is None else read_sidecar(data)


def _with_facts(slices: Iterable[Slice], beside: ScanFacts) -> Iterator[Slice]:
    """Yield slices with the facts of a sidecar where the file itself states none."""
    for one in slices:
        sequence, acquired = one.facts.sequence or beside.sequence, one.facts.acquired or beside.acquired
        yield replace(one, facts=replace(one.facts, sequence=sequence, acquired=acquired))


def _scan_row(file: SourceFile, image: Slice, stated: Lesion | None, rules: Rules) -> dict[str, Any]:
    """Return a row of ``schemas.SCANS`` without ``file`` and ``file_row``."""
    pixels = pixel_hash(image.pixels)
    key = rules.stored_key(file.key)
    facts = image.facts
    tenant, site = rules.settings.tenant, file.site or rules.settings.site
    return {
        "image_id": image_id(key, image.frame, pixels),
        "label": label_of(file, facts, rules),
        "group_id": "",  # these three depend on the whole corpus: group_scans fills them
        "joins": [],
        "cluster_id": "",
        "generation": rules.generation,
        "source_key": key,
        "stamp": file.stamp,
        "frame": image.frame,
        "source_split": file.split,
        "fold": file.fold,
        "tenant": tenant,
        "site": site,
        "plane": file.plane or facts.plane,
        "sequence": file.sequence or facts.sequence or _sequence_of_name(file, facts),
        "spacing_mm": facts.spacing,
        "position_mm": facts.position,
        "masked": facts.masked,
        "pixel_hash": pixels,
        "difference_hash": difference_hash(image.pixels),
        **lesion_columns(first_known(stated or Lesion(), facts.lesion or Lesion())),
        **_pseudonymous(file, facts, rules, tenant, site),
    }


def _stated_patient(file: SourceFile, facts: ScanFacts, rules: Rules) -> tuple[str | None, str | None]:
    """Return the id that the manifest states, else the file, and who assigned it; no id where both name nobody.

    The issuer in a header assigned the id in that header: an id that only the manifest states is not his.
    """

    def ident(stated: str | None) -> str | None:
        return patient_id(stated, rules.settings.unknown_patients)

    in_table, in_header = ident(file.patient), ident(facts.patient)
    if in_table is None:
        return facts.patient if in_header is not None else None, file.issuer or facts.issuer
    return file.patient, file.issuer or (facts.issuer if in_header == in_table else None)


def _pseudonymous(
    file: SourceFile, facts: ScanFacts, rules: Rules, tenant: str | None, site: str | None
) -> dict[str, Any]:
    """Return the columns made from identifiers: pseudonyms, and the shifted day and true year of acquisition."""
    pseudonyms = rules.pseudonyms
    acquired = datetime.date.fromisoformat(file.acquired) if file.acquired else facts.acquired
    columns: dict[str, Any] = {"year": None if acquired is None else acquired.year}
    if pseudonyms is None:
        assert file.patient is None
        assert facts.patient is None
        return columns
    stated, issuer = _stated_patient(file, facts, rules)
    issuer = issuer_name(issuer)
    patient, study = patient_id(stated), file.study or facts.study
    if patient is not None:
        columns["bare_id"] = bare_id = pseudonyms.name("patient", patient)
        columns["issuer"] = issuer = None if issuer is None else pseudonyms.hidden(issuer)
        # With the rest of the corpus in view, `mrcg.corpus.patients` may find that somebody else assigned the id.
        columns["patient"] = pseudonyms.person(authority_of(issuer, tenant, site), bare_id)
    for kind, value in (("study", study), ("accession", facts.accession)):
        columns[kind] = None if value is None else pseudonyms.name(kind, value)
    for kind, value in (("series", facts.series), ("instance", facts.instance)):
        columns[kind] = None if value is None else pseudonyms.uid(kind, value)
    owner = patient or study
    if acquired is not None and owner is not None:
        columns["acquired"] = pseudonyms.shifted(acquired, owner)
    return columns


def label_of(file: SourceFile, facts: ScanFacts, rules: Rules) -> str | None:
    """Return the label that the manifest states, else the file, else the folder name if that is known to be a label.

    With a key, folder names are labels only if ``ingest.classes`` lists them: folders may be named after patients.
    """
    if file.labelled:
        return file.label
    if facts.label is not None:
        return facts.label
    classes = rules.settings.classes
    if classes is None:
        return file.label if rules.pseudonyms is None else None
    return file.label if file.label in classes else None


def _sequence_of_name(file: SourceFile, facts: ScanFacts) -> str | None:
    # A NIfTI header does not state the sequence, but file names often do (sub-01_T1w.nii.gz). Only one of four fixed
    # sequence names is stored, nothing else of the file name.
    volume = facts.plane is not None and facts.series is None
    return sequence_of_text(file.key.rsplit("/", 1)[-1]) if volume else None


def is_suppressed(row: dict[str, Any], rules: Rules, stated: str | None = None) -> bool:
    """Return whether a scan's id, pixels or patient is on the suppression list.

    Args:
        row: of the scan.
        rules: of the ingestion.
        stated: id of the patient as the source states it: who was erased by an earlier version stays erased.
    """
    if not rules.suppressed:
        return False
    candidates = [(IMAGE, row["image_id"]), (PIXELS, row["pixel_hash"])]
    # Erasures under policy 1 took everybody who has an id, whoever assigned it.
    candidates += [(PATIENT, row[name]) for name in ("patient", "bare_id") if row.get(name)]
    if stated is not None and rules.pseudonyms is not None:
        candidates += [(PATIENT, rules.pseudonyms.name("patient", form)) for form in earlier_forms(stated)]
    return any(token(rules.pseudonyms, kind, value) in rules.suppressed for kind, value in candidates)


def _quarantine_row(file: SourceFile, rules: Rules, frame: int | None, reason: str, detail: str) -> dict[str, Any]:
    return {
        "source_key": rules.stored_key(file.key),
        "stamp": file.stamp,
        "frame": frame,
        "reason": reason,
        "detail": detail,
    }
