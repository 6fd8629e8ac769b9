"""What is known of the scans of an index, by gallery row, and which of them a filter lets through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mrcg.index.distances import Mask, Rows
from mrcg.storage import schemas


@dataclass(frozen=True)
class Where:
    """A filter: a scan passes where each column that is named has one of its values. Unknown never passes.

    ``years`` is the first and the last year of acquisition, both included.
    """

    tenant: tuple[str, ...] = ()
    site: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    sequence: tuple[str, ...] = ()
    plane: tuple[str, ...] = ()
    patient: tuple[str, ...] = ()
    years: tuple[int, int] | None = None


#: Columns of ``schemas.ROWS`` that a filter may name values of.
COLUMNS = tuple(field.name for field in fields(Where) if field.name != "years")


class Gallery:
    """Facts about gallery rows. ``size`` rows in all; those of shards that are not open here are unknown."""

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        table = pa.concat_tables(tables) if tables else schemas.ROWS.empty_table()
        self.table = table.filter(pc.is_valid(table["row"])).sort_by("row").combine_chunks()
        self.rows: Rows = self.table["row"].to_numpy()
        self.size = int(self.rows[-1]) + 1 if len(self.rows) else 0
        self._whole = self.size == len(self.rows)

    def __len__(self) -> int:
        return self.size

    def ids(self, rows: Rows) -> list[str]:
        """Image ids of rows."""
        return self.values("image_id", rows)

    def values(self, column: str, rows: Rows) -> list[Any]:
        """What a column of ``schemas.ROWS`` has for rows."""
        taken: list[Any] = self.table[column].take(pa.array(self._places(rows))).to_pylist()
        return taken

    def _places(self, rows: Rows) -> npt.NDArray[np.int64]:
        if self._whole:
            return rows
        places = np.searchsorted(self.rows, rows)
        assert (self.rows[places] == rows).all(), "a row of a shard that is not open"
        return places

    def rows_of(self, image_ids: Sequence[str]) -> Rows:
        """Rows of the images that are here, in their order; others are left out."""
        found = pc.index_in(pa.array(image_ids, pa.string()), value_set=self.table["image_id"].combine_chunks())
        rows: Rows = self.rows[found.drop_null().to_numpy()]
        return rows

    def codes(self, column: str) -> npt.NDArray[np.int64]:
        """(size,) a number for each distinct value of a column, -1 where it is unknown."""
        encoded = pc.dictionary_encode(self.table[column].combine_chunks())
        out = np.full(self.size, -1, dtype=np.int64)
        out[self.rows] = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
        return out

    def mask(self, where: Where) -> Mask:
        """(size,) which rows pass a filter."""
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
