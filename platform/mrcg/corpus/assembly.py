"""Assemble a corpus from ingested segments and its base corpus: tables, counts and files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mrcg.corpus.grouping import conflicts, group_scans, separate_repeats
from mrcg.corpus.ingestion import HARMLESS_REASONS, Rules, is_suppressed
from mrcg.corpus.listing import TRANSIENT_REASONS, Digests, row_digests
from mrcg.corpus.patients import resolve_patients, undecided, with_bare_ids
from mrcg.corpus.reader import QUARANTINE, SCANS, keep_rows, read_quarantine, read_scans, rows_in
from mrcg.stages.counts import CorpusCounts
from mrcg.storage import schemas
from mrcg.storage.manifest import FileEntry
from mrcg.storage.store import Artefact

#: Maximum rows in one Parquet file of the scans table.
ROWS_PER_FILE = 500_000

Write = Callable[[str, bytes], FileEntry]


@dataclass(frozen=True)
class AssembledCorpus:
    """A corpus that is ready to be published, and a summary of its bad files.

    Attributes:
        files: all files of the corpus.
        counts: the manifest's counts.
        bad_files: number of files that are bad as a whole.
        first_bad: stored key and reason of the first bad file, None if there is none.
    """

    files: Sequence[FileEntry]
    counts: CorpusCounts
    bad_files: int
    first_bad: tuple[str, str] | None


def assemble_corpus(
    segments: Iterable[tuple[pa.Table, pa.Table, Sequence[FileEntry]]],
    base: Artefact | None,
    kept: Digests,
    rules: Rules,
    write: Write,
    purge: bool = False,
) -> AssembledCorpus:
    """Combine the segments with the rows kept from the base, group all scans and write the tables.

    Args:
        segments: scans, quarantine and pixel files of each segment, in order.
        base: corpus that this one extends; None for the first.
        kept: sorted digests of the base's files that the source still has.
        rules: of this ingestion.
        write: writes a file of the corpus and returns its entry.
        purge: leave no trace of suppressed scans: no quarantine row and no pixels in any file. An erasure sets it
            (docs/index.md#erasure).
    """
    old_scans, old_quarantine, files = _kept_from_base(base, kept, rules, purge, write)
    scans, quarantine = [old_scans], [old_quarantine]
    for new_scans, new_quarantine, new_files in segments:
        scans.append(new_scans)
        quarantine.append(new_quarantine)
        files += new_files
    table, repeats = separate_repeats(pa.concat_tables(scans))
    quarantine.append(_quarantine_rows(repeats, "listed_twice", "the source lists this file more than once"))
    quarantined = pa.concat_tables(quarantine)
    if purge:
        # No scan is new, so searching the whole corpus for near-duplicates again would find no further pairs.
        table = _rename_clusters(table)
    else:
        if rules.pseudonyms is not None:
            table = resolve_patients(table, rules.pseudonyms)
        table = group_scans(table, rules.generation, rules.settings.near_duplicate_bits)
    for number, start in enumerate(range(0, max(1, table.num_rows), ROWS_PER_FILE)):
        part = table.slice(start, ROWS_PER_FILE)
        files.append(write(f"{SCANS}{number:05d}.parquet", schemas.to_parquet(part)))
    files.append(write(f"{QUARANTINE}00000.parquet", schemas.to_parquet(quarantined)))
    bad = bad_rows(quarantined)
    first = bad.slice(0, 1).to_pylist()
    return AssembledCorpus(
        files,
        _counts(table, quarantined, rules),
        bad.num_rows,
        (first[0]["source_key"], first[0]["reason"]) if first else None,
    )


def labels_that_differ_by_case(labels: Iterable[str]) -> list[list[str]]:
    """Return the groups of labels that are equal without case: most likely one class, spelt in several ways."""
    spelt: dict[str, list[str]] = {}
    for label in sorted(labels):
        spelt.setdefault(label.casefold(), []).append(label)
    return [names for names in spelt.values() if len(names) > 1]


def bad_rows(quarantine: pa.Table) -> pa.Table:
    """Return the quarantine rows of files that are bad as a whole, without single slices and harmless reasons."""
    harmful = pa.array([reason not in HARMLESS_REASONS for reason in quarantine["reason"].to_pylist()], pa.bool_())
    return quarantine.filter(pc.and_(pc.is_null(quarantine["frame"]), harmful))


def _kept_from_base(
    base: Artefact | None, kept: Digests, rules: Rules, purge: bool, write: Write
) -> tuple[pa.Table, pa.Table, list[FileEntry]]:
    """Return the scans, quarantine rows and pixel files of the base that stay in the new corpus."""
    if base is None:
        return schemas.SCANS.empty_table(), schemas.QUARANTINE.empty_table(), []
    scans, quarantine = read_scans(base), read_quarantine(base)
    policy = base.manifest.settings["policy"]
    if not purge and policy is not None and policy["version"] == 1:
        scans = with_bare_ids(scans)
    scans = scans.filter(pa.array(np.isin(row_digests(scans), kept)))
    permanent = np.array([reason not in TRANSIENT_REASONS for reason in quarantine["reason"].to_pylist()], dtype=bool)
    quarantine = quarantine.filter(pa.array(np.isin(row_digests(quarantine), kept) & permanent))
    rewritten: set[str] = set()
    if rules.suppressed:
        suppressed = pa.array(
            [
                is_suppressed(row, rules)
                for row in scans.select(["image_id", "pixel_hash", "patient", "bare_id"]).to_pylist()
            ],
            pa.bool_(),
        )
        removed, scans = scans.filter(suppressed), scans.filter(pc.invert(suppressed))
        if purge:
            quarantine = quarantine.filter(pc.invert(pc.is_in(quarantine["source_key"], removed["source_key"])))
        else:
            new_rows = _quarantine_rows(removed, "suppressed", "on the suppression list")
            quarantine = pa.concat_tables([quarantine, new_rows])
        scans = rename_groups_of_removed(scans, removed)
        rewritten = set(removed["file"].to_pylist())
    return _with_pixel_files(base, scans, quarantine, rewritten, purge, write)


def _with_pixel_files(
    base: Artefact, scans: pa.Table, quarantine: pa.Table, rewritten: set[str], purge: bool, write: Write
) -> tuple[pa.Table, pa.Table, list[FileEntry]]:
    """Add the pixel files of the kept scans: shared with the base, or rewritten without the removed rows.

    Args:
        base: corpus that holds the files.
        scans: kept scans.
        quarantine: kept quarantine rows, returned unchanged.
        rewritten: files that hold removed scans.
        purge: also rewrite files with rows that an earlier corpus removed.
        write: writes a file of the corpus.

    Returns:
        Scans with ``file_row`` updated for the rewritten files, the quarantine, and the files.
    """
    names, rows = scans["file"].to_pylist(), scans["file_row"].to_pylist()
    rows_of: dict[str, list[int]] = {}
    for name, row in zip(names, rows, strict=True):
        rows_of.setdefault(name, []).append(row)
    files, moved = [], False
    for name, file_rows in rows_of.items():
        if name in rewritten or (purge and rows_in(base, name) != len(file_rows)):
            files.append(write(name, keep_rows(base.read_bytes(name), file_rows)))
            rows_of[name], moved = list(range(len(file_rows))), True
        else:
            # The file is not copied: the new manifest names the folder of the version that wrote it.
            files.append(base.reference(name))
    if moved:
        new_rows = {name: iter(file_rows) for name, file_rows in rows_of.items()}
        column = pa.array([next(new_rows[name]) for name in names], pa.int32())
        index = scans.schema.get_field_index("file_row")
        scans = scans.set_column(index, schemas.SCANS.field("file_row"), column)
    return scans, quarantine, files


def rename_groups_of_removed(scans: pa.Table, removed: pa.Table) -> pa.Table:
    """Rename groups that are named after removed scans, patients or studies to their smallest remaining image id.

    A group's name must not reveal the id of an erased image. A renamed group may move to the other part of a split
    that is drawn by group name.

    Args:
        scans: remaining scans, table of ``schemas.SCANS``.
        removed: removed scans.

    Returns:
        ``scans`` with ``group_id`` and ``joins`` updated; joins to groups with no member left are dropped.
    """
    owners = ("patient", "bare_id", "study")
    forgotten = {value for name in ("image_id", *owners) for value in removed[name].to_pylist() if value}
    people = {value for name in owners for value in scans[name].to_pylist() if value}
    forgotten -= people  # patients and studies that still have scans keep their group's name
    groups, joins = scans["group_id"].to_pylist(), scans["joins"].to_pylist()
    smallest: dict[str, str] = {}
    for group, ident in zip(groups, scans["image_id"].to_pylist(), strict=True):
        if group in forgotten:
            smallest[group] = min(ident, smallest.get(group, ident))
    if not smallest and not any(forgotten.intersection(row_joins) for row_joins in joins):
        return scans
    new_groups = [smallest.get(group, group) for group in groups]
    new_joins = [
        sorted({smallest.get(group, group) for group in row_joins if group not in forgotten or group in smallest})
        for row_joins in joins
    ]
    for name, values in (("group_id", new_groups), ("joins", new_joins)):
        field = schemas.SCANS.field(name)
        scans = scans.set_column(scans.schema.get_field_index(name), field, pa.array(values, field.type))
    return scans


def _rename_clusters(scans: pa.Table) -> pa.Table:
    """Rename clusters of near-duplicates whose namesake was removed to their smallest remaining image id."""
    clusters, ids = scans["cluster_id"].combine_chunks(), scans["image_id"].combine_chunks()
    orphaned = pc.invert(pc.is_in(clusters, value_set=ids))
    smallest: dict[str, str] = {}
    for cluster, ident in zip(clusters.filter(orphaned).to_pylist(), ids.filter(orphaned).to_pylist(), strict=True):
        smallest[cluster] = min(ident, smallest.get(cluster, ident))
    names = pa.array([smallest[cluster] for cluster in clusters.filter(orphaned).to_pylist()], pa.string())
    field = schemas.SCANS.field("cluster_id")
    return scans.set_column(
        scans.schema.get_field_index(field.name), field, pc.replace_with_mask(clusters, orphaned, names)
    )


def _quarantine_rows(scans: pa.Table, reason: str, detail: str) -> pa.Table:
    """Return one quarantine row for each distinct source file of some scans."""
    rows = [
        {"source_key": key, "stamp": stamp, "frame": None, "reason": reason, "detail": detail}
        for key, stamp in dict.fromkeys(zip(scans["source_key"].to_pylist(), scans["stamp"].to_pylist(), strict=True))
    ]
    return pa.Table.from_pylist(rows, schemas.QUARANTINE)


def _counts(scans: pa.Table, quarantine: pa.Table, rules: Rules) -> CorpusCounts:
    def distinct(column: str) -> int:
        return int(pc.count_distinct(scans[column]).as_py())

    labels = Counter(label for label in scans["label"].to_pylist() if label is not None)
    return CorpusCounts(
        images=scans.num_rows,
        quarantined=quarantine.num_rows,
        reasons=dict(sorted(Counter(quarantine["reason"].to_pylist()).items())),
        groups=distinct("group_id"),
        clusters=distinct("cluster_id"),
        distinct=distinct("pixel_hash"),
        patients=distinct("patient"),
        without_patient=None if rules.pseudonyms is None else scans["patient"].null_count,
        undecided=undecided(scans),
        conflicts=len(conflicts(scans)),
        classes=dict(sorted(labels.items())),
        generation=rules.generation,
    )
