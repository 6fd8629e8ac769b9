"""Whether the slices beside a query, of the same series of its patient, come first (docs/method.md#known-items)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from mrcg.arrays import Mask, RowNumbers
from mrcg.metrics.known_items import FirstShares, NeighbouringSlices

#: Columns of ``schemas.SCANS`` that say where a slice lies.
COLUMNS = ("patient", "series", "source_key", "plane", "slice_number")


def neighbouring_slices(
    scans: pa.Table, queries: RowNumbers, gallery: Mask, hits: Mapping[str, RowNumbers]
) -> NeighbouringSlices | None:
    """Return how often the slice before or after the query, of those in the corpus, is the first hit, and in ten hits.

    Args:
        scans: table of ``schemas.SCANS``.
        queries: (q,) rows of the queries.
        gallery: (rows,) whether each scan can be found.
        hits: (q, n) rows of the hits in each order (ann, score, served), best first; -1 for pads.

    Returns:
        The shares over the queries that have such a slice in the gallery; None if no query has one.
    """
    places = _places(scans)
    beside = [_beside(places, row, gallery) for row in queries.tolist()]
    asked = [number for number, rows in enumerate(beside) if rows]
    if not asked:
        return None

    def shares(depth: int) -> FirstShares:
        found = {
            order: float(np.mean([bool(beside[q] & set(rows_qn[q, :depth].tolist())) for q in asked]))
            for order, rows_qn in hits.items()
        }
        return FirstShares(**found)

    return NeighbouringSlices(queries=len(asked), first=shares(1), in_10=shares(10))


#: Series or file, plane, and number of a slice in it.
_Place = tuple[str, str | None, int]


def _places(scans: pa.Table) -> tuple[list[_Place | None], dict[_Place, list[int]]]:
    """Return the series and slice number of each scan of a known patient, and the rows at each place."""
    of_row: list[_Place | None] = []
    rows_at: dict[_Place, list[int]] = {}
    columns = (scans[name].to_pylist() for name in COLUMNS)
    for row, (patient, series, source_key, plane, number) in enumerate(zip(*columns, strict=True)):
        # A volume without a series is one file. Slices of a volume are numbered for each plane.
        place = None if patient is None or number is None else (series or source_key, plane, number)
        of_row.append(place)
        if place is not None:
            rows_at.setdefault(place, []).append(row)
    return of_row, rows_at


def _beside(places: tuple[list[_Place | None], dict[_Place, list[int]]], row: int, gallery: Mask) -> set[int]:
    of_row, rows_at = places
    if (place := of_row[row]) is None:
        return set()
    series, plane, number = place
    return {other for step in (-1, 1) for other in rows_at.get((series, plane, number + step), ()) if gallery[other]}
