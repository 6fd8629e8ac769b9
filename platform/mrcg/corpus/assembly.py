"""From segments and an earlier corpus to one corpus: its tables, its counts, its files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mrcg.corpus.grouping import conflicts, group_scans, without_repeats
from mrcg.corpus.ingestion import HARMLESS, Rules, is_suppressed
from mrcg.corpus.listing import PASSING, Digests, row_digests
from mrcg.corpus.reader import QUARANTINE, SCANS, read_quarantine, read_scans, rows_in, without_rows
from mrcg.storage import schemas
from mrcg.storage.manifest import FileEntry
from mrcg.storage.store import Artefact

#: Rows of one file of the table of scans.
ROWS_PER_FILE = 500_000

Write = Callable[[str, bytes], FileEntry]


@dataclass(frozen=True)
class AssembledCorpus:
    """A corpus that is ready to be published, and what was refused in it."""

    files: Sequence[FileEntry]
    counts: dict[str, Any]
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
    """Put segments and what is left of the base together, group all of it, write the tables.

    Args:
        segments: scans, quarantine and files of pixels of each, in order.
        base: corpus that this one grows from.
        kept: digests of the base's files that the source still has.
        rules: of this ingestion.
        write: writes a file of the corpus.
        purge: leave nothing of what goes: no word in the quarantine, no pixels in any file (an erasure, DESIGN §5).
    """
    old_scans, old_quarantine, files = _kept(base, kept, rules, purge, write)
    scans, quarantine = [old_scans], [old_quarantine]
    for new_scans, new_quarantine, new_files in segments:
        scans.append(new_scans)
        quarantine.append(new_quarantine)
        files += new_files
    table, repeats = without_repeats(pa.concat_tables(scans))
    quarantine.append(_refused(repeats, "listed_twice", "the source lists this file more than once"))
    refused = pa.concat_tables(quarantine)
    if purge:
        # Who belongs together was found before, and nobody is new: a search of the whole corpus would find no more.
        table = _rename_clusters(table)
    else:
        table = group_scans(table, rules.generation, rules.settings.near_duplicate_bits)
    for number, start in enumerate(range(0, max(1, table.num_rows), ROWS_PER_FILE)):
        part = table.slice(start, ROWS_PER_FILE)
        files.append(write(f"{SCANS}{number:05d}.parquet", schemas.to_parquet(part)))
    files.append(write(f"{QUARANTINE}00000.parquet", schemas.to_parquet(refused)))
    bad = bad_rows(refused)
    first = bad.slice(0, 1).to_pylist()
    return AssembledCorpus(
        files,
        _counts(table, refused, rules),
        bad.num_rows,
        (first[0]["source_key"], first[0]["reason"]) if first else None,
    )


def bad_rows(quarantine: pa.Table) -> pa.Table:
    """Rows of files that are bad as a whole; single slices and harmless reasons left out."""
    harmful = pa.array([reason not in HARMLESS for reason in quarantine["reason"].to_pylist()], pa.bool_())
    return quarantine.filter(pc.and_(pc.is_null(quarantine["frame"]), harmful))


def _kept(
    base: Artefact | None, kept: Digests, rules: Rules, purge: bool, write: Write
) -> tuple[pa.Table, pa.Table, list[FileEntry]]:
    if base is None:
        return schemas.SCANS.empty_table(), schemas.QUARANTINE.empty_table(), []
    scans, quarantine = read_scans(base), read_quarantine(base)
    scans = scans.filter(pa.array(np.isin(row_digests(scans), kept)))
    lasting = np.array([reason not in PASSING for reason in quarantine["reason"].to_pylist()], dtype=bool)
    quarantine = quarantine.filter(pa.array(np.isin(row_digests(quarantine), kept) & lasting))
    rewritten: set[str] = set()
    if rules.suppressed:
        gone = pa.array(
            [is_suppressed(row, rules) for row in scans.select(["image_id", "pixel_hash", "patient"]).to_pylist()],
            pa.bool_(),
        )
        going, scans = scans.filter(gone), scans.filter(pc.invert(gone))
        if purge:
            quarantine = quarantine.filter(pc.invert(pc.is_in(quarantine["source_key"], going["source_key"])))
        else:
            refused = _refused(going, "suppressed", "on the suppression list")
            quarantine = pa.concat_tables([quarantine, refused])
        scans = forget_names(scans, going)
        rewritten = set(going["file"].to_pylist())
    return _with_files(base, scans, quarantine, rewritten, purge, write)


def _with_files(
    base: Artefact, scans: pa.Table, quarantine: pa.Table, rewritten: set[str], purge: bool, write: Write
) -> tuple[pa.Table, pa.Table, list[FileEntry]]:
    """The files of pixels of what is kept: as they are, or without the rows of what is gone."""
    names, rows = scans["file"].to_pylist(), scans["file_row"].to_pylist()
    rows_of: dict[str, list[int]] = {}
    for name, row in zip(names, rows, strict=True):
        rows_of.setdefault(name, []).append(row)
    files, moved = [], False
    for name, wanted in rows_of.items():
        if name in rewritten or (purge and rows_in(base, name) != len(wanted)):
            files.append(write(name, without_rows(base.read_bytes(name), wanted)))
            rows_of[name], moved = list(range(len(wanted))), True
        else:
            # It stays where it is: the new manifest names the folder of the version that wrote it.
            files.append(base.shared(name))
    if moved:
        places = {name: iter(numbers) for name, numbers in rows_of.items()}
        column = pa.array([next(places[name]) for name in names], pa.int32())
        number = scans.schema.get_field_index("file_row")
        scans = scans.set_column(number, schemas.SCANS.field("file_row"), column)
    return scans, quarantine, files


def forget_names(scans: pa.Table, gone: pa.Table) -> pa.Table:
    """Groups that were named after scans or patients who are gone get another name: their smallest member's.

    Whoever looks at a group must not find the id of an erased image in its name. Such a group may change its part
    in a split that is drawn by the group's name.
    """
    forgotten = {value for name in ("image_id", "patient", "study") for value in gone[name].to_pylist() if value}
    people = {value for name in ("patient", "study") for value in scans[name].to_pylist() if value}
    forgotten -= people  # an image of a patient who stays
    groups, joins = scans["group_id"].to_pylist(), scans["joins"].to_pylist()
    smallest: dict[str, str] = {}
    for group, ident in zip(groups, scans["image_id"].to_pylist(), strict=True):
        if group in forgotten:
            smallest[group] = min(ident, smallest.get(group, ident))
    if not smallest and not any(forgotten.intersection(one) for one in joins):
        return scans
    renamed = [smallest.get(group, group) for group in groups]
    joined = [
        sorted({smallest.get(one, one) for one in some if one not in forgotten or one in smallest}) for some in joins
    ]
    for name, values in (("group_id", renamed), ("joins", joined)):
        field = schemas.SCANS.field(name)
        scans = scans.set_column(scans.schema.get_field_index(name), field, pa.array(values, field.type))
    return scans


def _rename_clusters(scans: pa.Table) -> pa.Table:
    """Clusters of near-duplicates whose first member is gone get the name of their smallest one that is left."""
    clusters, ids = scans["cluster_id"].combine_chunks(), scans["image_id"].combine_chunks()
    lost = pc.invert(pc.is_in(clusters, value_set=ids))
    smallest: dict[str, str] = {}
    for cluster, ident in zip(clusters.filter(lost).to_pylist(), ids.filter(lost).to_pylist(), strict=True):
        smallest[cluster] = min(ident, smallest.get(cluster, ident))
    names = pa.array([smallest[cluster] for cluster in clusters.filter(lost).to_pylist()], pa.string())
    field = schemas.SCANS.field("cluster_id")
    return scans.set_column(
        scans.schema.get_field_index(field.name), field, pc.replace_with_mask(clusters, lost, names)
    )


def _refused(scans: pa.Table, reason: str, detail: str) -> pa.Table:
    rows = [
        {"source_key": key, "stamp": stamp, "frame": None, "reason": reason, "detail": detail}
        for key, stamp in dict.fromkeys(zip(scans["source_key"].to_pylist(), scans["stamp"].to_pylist(), strict=True))
    ]
    return pa.Table.from_pylist(rows, schemas.QUARANTINE)


def _counts(scans: pa.Table, quarantine: pa.Table, rules: Rules) -> dict[str, Any]:
    def distinct(column: str) -> int:
        return int(pc.count_distinct(scans[column]).as_py())

    labels = Counter(label for label in scans["label"].to_pylist() if label is not None)
    return {
        "images": scans.num_rows,
        "quarantined": quarantine.num_rows,
        "reasons": dict(sorted(Counter(quarantine["reason"].to_pylist()).items())),
        "groups": distinct("group_id"),
        "clusters": distinct("cluster_id"),
        "distinct": distinct("pixel_hash"),
        "patients": distinct("patient"),
        "conflicts": len(conflicts(scans)),
        "classes": dict(sorted(labels.items())),
        "generation": rules.generation,
    }
