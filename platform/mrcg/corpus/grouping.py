"""Groups of scans that no split may divide (docs/corpus.md#duplicates-and-groups)."""

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

    ``cluster_id`` joins near-duplicates regardless of the patient. ``group_id`` is the id of the patient if known,
    whoever assigned it, else the study, else the cluster: where one id may stand for one person or for several, no
    split may tell them apart. Groups of earlier generations keep their names and members, so that no scan ever changes
    its split. A new scan that connects its group with other groups lists these in ``joins``.

    Args:
        scans: table of ``schemas.SCANS``; rows of this generation have these columns unfilled.
        generation: of the new corpus; rows with a lower generation are old.
        near_duplicate_bits: maximum Hamming distance of the difference hashes of two near-duplicates.
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


def separate_repeats(scans: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return the first row of each image id, and the rows that repeat an id because the source lists a file twice."""
    codes = pc.dictionary_encode(scans["image_id"].combine_chunks()).indices.to_numpy()
    first = np.zeros(len(codes), dtype=bool)
    first[np.unique(codes, return_index=True)[1]] = True
    return scans.filter(pa.array(first)), scans.filter(pa.array(~first))


def conflicts(scans: pa.Table) -> dict[str, list[str]]:
    """Return the labels of exact copies whose labels differ, by pixel hash."""
    pairs = scans.select(["pixel_hash", "label"]).filter(pc.is_valid(scans["label"]))
    grouped = pairs.group_by("pixel_hash").aggregate([("label", "distinct")])
    differing = grouped.filter(pc.greater(pc.list_value_length(grouped["label_distinct"]), 1))
    return {row["pixel_hash"]: sorted(row["label_distinct"]) for row in differing.to_pylist()}


def _bytes_of(column: pa.ChunkedArray, width: int) -> npt.NDArray[np.uint8]:
    """Return the (n, width) bytes of a fixed-size binary column."""
    flat = column.combine_chunks()
    start = flat.offset * width
    return np.frombuffer(flat.buffers()[1], dtype=np.uint8)[start : start + len(flat) * width].reshape(-1, width)


def _named_after_smallest(ids: Sequence[str], roots: npt.NDArray[np.int64]) -> list[str]:
    """Name each member's component after its smallest image id, so that names do not depend on the input's order."""
    smallest: dict[int, str] = {}
    for member, root in zip(ids, roots.tolist(), strict=True):
        smallest[root] = min(member, smallest.get(root, member))
    return [smallest[root] for root in roots.tolist()]


def _groups(
    scans: pa.Table, generation: int, roots: npt.NDArray[np.int64], clusters: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Return ``group_id`` and ``joins`` of each row; ``roots`` and ``clusters`` are the near-duplicate components."""
    is_old = (scans["generation"].to_numpy() < generation).tolist()
    old_groups, old_joins = scans["group_id"].to_pylist(), scans["joins"].to_pylist()
    owners = pc.coalesce(scans["bare_id"], scans["patient"], scans["study"]).to_pylist()
    # Groups in each component: all old groups and the owners of new rows; and the groups of old rows without an owner.
    component_groups: dict[int, set[str]] = {}
    ownerless_groups: dict[int, set[str]] = {}
    for row, root in enumerate(roots.tolist()):
        if is_old[row]:
            component_groups.setdefault(root, set()).add(old_groups[row])
            if owners[row] is None:
                ownerless_groups.setdefault(root, set()).add(old_groups[row])
        elif owners[row] is not None:
            component_groups.setdefault(root, set()).add(owners[row])
    groups, joins = [], []
    for row, root in enumerate(roots.tolist()):
        if is_old[row]:
            groups.append(old_groups[row])
            joins.append(old_joins[row])
            continue
        owner = owners[row]
        if owner is not None:
            # Different patients are different groups however similar their scans are: only old groups of scans
            # without an owner are joined.
            groups.append(owner)
            joins.append(sorted(ownerless_groups.get(root, set()) - {owner}))
            continue
        candidates = sorted(component_groups.get(root, set()))
        groups.append(candidates[0] if candidates else clusters[row])
        joins.append(candidates[1:])
    return groups, joins


def _slice_numbers(scans: pa.Table) -> pa.Array:
    """Number the slices of each series or volume by position; null where a slice has no position."""
    stack = pc.coalesce(scans["series"], pc.binary_join_element_wise(scans["source_key"], scans["plane"], "\x1f"))
    codes = pc.fill_null(pc.dictionary_encode(stack.combine_chunks()).indices, -1).to_numpy(zero_copy_only=False)
    position = scans["position_mm"].to_numpy()
    known = (codes >= 0) & np.isfinite(position)
    order = np.lexsort((scans["frame"].to_numpy(), position, np.where(known, codes, -1)))
    order = order[known[order]]
    starts = np.flatnonzero(np.r_[True, codes[order][1:] != codes[order][:-1]]) if len(order) else np.empty(0, int)
    sorted_numbers = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    numbers = np.zeros(len(codes), dtype=np.int32)
    numbers[order] = sorted_numbers
    return pa.array(numbers, pa.int32(), mask=~known)
