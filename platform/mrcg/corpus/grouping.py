"""Groups of a whole corpus: who belongs together and must never be cut by a split (DESIGN §2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mrcg.imaging.near_duplicates import HASH_BYTES, join_groups, near_pairs
from mrcg.storage import schemas


def group_scans(scans: pa.Table, generation: int, near_duplicate_bits: int) -> pa.Table:
    """Fill the columns that depend on the whole corpus: group_id, joins, cluster_id, slice_number.

    ``cluster_id`` joins near-duplicates, whoever the patient is. ``group_id`` is the patient (or, without one, the
    study) where known, else the cluster. A group that an earlier generation named keeps its name and its members,
    so that no scan ever changes its split; a new scan that connects it with others has these in ``joins``.

    Args:
        scans: table of ``schemas.SCANS``, rows of this generation with these columns unfilled.
        generation: of the corpus that is made.
        near_duplicate_bits: difference hashes at most so many bits apart are near-duplicates.
    """
    ids = scans["image_id"].to_pylist()
    hashes = _bytes_of(scans["difference_hash"], HASH_BYTES)
    roots = join_groups(len(ids), near_pairs(hashes, near_duplicate_bits))
    clusters = _named_after_smallest(ids, roots)
    groups, joins = _groups(scans, generation, roots, clusters)
    filled = {
        "group_id": pa.array(groups, pa.string()),
        "joins": pa.array(joins, schemas.SCANS.field("joins").type),
        "cluster_id": pa.array(clusters, pa.string()),
        "slice_number": _slice_numbers(scans),
    }
    for name, column in filled.items():
        scans = scans.set_column(scans.schema.get_field_index(name), schemas.SCANS.field(name), column)
    return scans


def without_repeats(scans: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Rows with each image once, and the rows that repeat one (a file that a manifest lists twice)."""
    codes = pc.dictionary_encode(scans["image_id"].combine_chunks()).indices.to_numpy()
    first = np.zeros(len(codes), dtype=bool)
    first[np.unique(codes, return_index=True)[1]] = True
    return scans.filter(pa.array(first)), scans.filter(pa.array(~first))


def conflicts(scans: pa.Table) -> dict[str, list[str]]:
    """Labels of exact copies that do not agree, by pixel hash."""
    pairs = scans.select(["pixel_hash", "label"]).filter(pc.is_valid(scans["label"]))
    grouped = pairs.group_by("pixel_hash").aggregate([("label", "distinct")])
    several = grouped.filter(pc.greater(pc.list_value_length(grouped["label_distinct"]), 1))
    return {row["pixel_hash"]: sorted(row["label_distinct"]) for row in several.to_pylist()}


def _bytes_of(column: pa.ChunkedArray, width: int) -> npt.NDArray[np.uint8]:
    flat = column.combine_chunks()
    start = flat.offset * width
    return np.frombuffer(flat.buffers()[1], dtype=np.uint8)[start : start + len(flat) * width].reshape(-1, width)


def _named_after_smallest(ids: Sequence[str], roots: npt.NDArray[np.int64]) -> list[str]:
    """Name of each member's component: its smallest image id, whatever the order of the input."""
    smallest: dict[int, str] = {}
    for member, root in zip(ids, roots.tolist(), strict=True):
        smallest[root] = min(member, smallest.get(root, member))
    return [smallest[root] for root in roots.tolist()]


def _groups(
    scans: pa.Table, generation: int, roots: npt.NDArray[np.int64], clusters: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    old = (scans["generation"].to_numpy() < generation).tolist()
    given, given_joins = scans["group_id"].to_pylist(), scans["joins"].to_pylist()
    people = pc.coalesce(scans["patient"], scans["study"]).to_pylist()
    # What a component touches: groups that are old, and groups of people.
    touched: dict[int, set[str]] = {}
    settled: dict[int, set[str]] = {}
    for row, root in enumerate(roots.tolist()):
        if old[row]:
            touched.setdefault(root, set()).add(given[row])
            if people[row] is None:
                settled.setdefault(root, set()).add(given[row])
        elif people[row] is not None:
            touched.setdefault(root, set()).add(people[row])
    groups, joins = [], []
    for row, root in enumerate(roots.tolist()):
        if old[row]:
            groups.append(given[row])
            joins.append(given_joins[row])
            continue
        person = people[row]
        if person is not None:
            # People are told apart by their ids, however alike their scans; only nameless old groups are joined.
            groups.append(person)
            joins.append(sorted(settled.get(root, set()) - {person}))
            continue
        others = sorted(touched.get(root, set()))
        groups.append(others[0] if others else clusters[row])
        joins.append(others[1:])
    return groups, joins


def _slice_numbers(scans: pa.Table) -> pa.Array:
    """Number of each slice within its series or volume, by position; None where it has no position."""
    stack = pc.coalesce(scans["series"], pc.binary_join_element_wise(scans["source_key"], scans["plane"], "\x1f"))
    codes = pc.fill_null(pc.dictionary_encode(stack.combine_chunks()).indices, -1).to_numpy(zero_copy_only=False)
    position = scans["position_mm"].to_numpy()
    known = (codes >= 0) & np.isfinite(position)
    order = np.lexsort((scans["frame"].to_numpy(), position, np.where(known, codes, -1)))
    order = order[known[order]]
    starts = np.flatnonzero(np.r_[True, codes[order][1:] != codes[order][:-1]]) if len(order) else np.empty(0, int)
    numbers = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    values = np.zeros(len(codes), dtype=np.int32)
    values[order] = numbers
    return pa.array(values, pa.int32(), mask=~known)
