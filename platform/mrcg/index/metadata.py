"""Metadata of gallery rows, and the filters over it (docs/index.md#filters-and-tombstones)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mrcg.arrays import Mask, RowNumbers
from mrcg.storage import schemas


@dataclass(frozen=True)
class Where:
    """A filter: a scan passes if each column with values given has one of them. An unknown value never passes.

    Attributes:
        years: first and last year of acquisition, both included.
    """

    tenant: tuple[str, ...] = ()
    site: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    sequence: tuple[str, ...] = ()
    plane: tuple[str, ...] = ()
    patient: tuple[str, ...] = ()
    years: tuple[int, int] | None = None


#: Columns of ``schemas.ROWS`` that can be filtered by value.
COLUMNS = tuple(field.name for field in fields(Where) if field.name != "years")


class Gallery:
    """Metadata of gallery rows.

    Args:
        tables: tables of ``schemas.ROWS``, one for each open part.

    Attributes:
        table: one row for each open row that is not deleted, by ascending gallery row.
        rows: (n,) their gallery rows.
        size: highest open gallery row plus 1; nothing is known of rows below it that are deleted or in other shards.
    """

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        table = pa.concat_tables(tables) if tables else schemas.ROWS.empty_table()
        self.table = table.filter(pc.is_valid(table["row"])).sort_by("row").combine_chunks()
        self.rows: RowNumbers = self.table["row"].to_numpy()
        self.size = int(self.rows[-1]) + 1 if len(self.rows) else 0
        self._complete = self.size == len(self.rows)

    def __len__(self) -> int:
        return self.size

    def ids(self, rows: RowNumbers) -> list[str]:
        """Return the image ids of rows."""
        return self.values("image_id", rows)

    def values(self, column: str, rows: RowNumbers) -> list[Any]:
        """Return the values of a column of ``schemas.ROWS`` for rows, None where unknown."""
        column_values: list[Any] = self.table[column].take(pa.array(self._positions(rows))).to_pylist()
        return column_values

    def _positions(self, rows: RowNumbers) -> npt.NDArray[np.int64]:
        if self._complete:
            return rows
        positions = np.searchsorted(self.rows, rows)
        assert (self.rows[positions] == rows).all(), "a row is deleted or its shard is not open"
        return positions

    def rows_of(self, image_ids: Sequence[str]) -> RowNumbers:
        """Return the rows of images, in the order given; images that are not open here are left out."""
        positions = pc.index_in(pa.array(image_ids, pa.string()), value_set=self.table["image_id"].combine_chunks())
        rows: RowNumbers = self.rows[positions.drop_null().to_numpy()]
        return rows

    def codes(self, column: str) -> npt.NDArray[np.int64]:
        """Return (size,) codes, one number per distinct value of a column; -1 where the value is unknown."""
        encoded = pc.dictionary_encode(self.table[column].combine_chunks())
        out = np.full(self.size, -1, dtype=np.int64)
        out[self.rows] = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
        return out

    def mask(self, where: Where) -> Mask:
        """Return a (size,) mask of the rows that pass a filter."""
        passing = np.ones(len(self.rows), dtype=bool)
        for name in COLUMNS:
            if values := getattr(where, name):
                passing &= pc.is_in(self.table[name], pa.array(values, pa.string())).to_numpy()
        if where.years is not None:
            year = self.table["year"]
            inside = pc.and_(pc.greater_equal(year, where.years[0]), pc.less_equal(year, where.years[1]))
            passing &= pc.fill_null(inside, False).to_numpy()
        out = np.zeros(self.size, dtype=bool)
        out[self.rows[passing]] = True
        return out
