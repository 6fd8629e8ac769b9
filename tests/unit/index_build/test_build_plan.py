import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.index_build.build_plan import current_rows, rows_table, take_rows
from mrcg.storage import schemas

NAMES = [name for name in schemas.ROWS.names if name != "row"]


def corpus(numbers):
    """A table of scans with these numbers as ids."""
    columns = {name: pa.array([f"{name}{number}" for number in numbers]) for name in NAMES if name != "year"}
    columns["year"] = pa.array([number % 100 for number in numbers], pa.int16())
    return rows_table(pa.table({name: columns[name] for name in NAMES}))


def ids(numbers):
    return pa.array([f"image_id{number}" for number in numbers], pa.string())


@given(st.lists(st.integers(0, 60), unique=True), st.integers(0, 60), st.integers(0, 10), st.integers(0, 3))
def test_current_rows_finds_scans_wherever_they_moved(numbers, keep, added, seed):
    """With no change, scans appended, scans deleted, or all scans reordered."""
    rng = np.random.default_rng(seed)
    part = take_rows(corpus(numbers), rng.permutation(len(numbers)))
    now = [number for number in numbers if number < keep or seed < 2] + list(range(100, 100 + added))
    if seed == 3:
        rng.shuffle(now)
    rows = current_rows(ids(now), part)
    expected = [now.index(int(i[8:])) if int(i[8:]) in now else -1 for i in part["image_id"].to_pylist()]
    assert rows.tolist() == expected
    # A deleted row stays deleted, also in a part that had deleted rows before.
    assert current_rows(ids(now), take_rows(corpus(now), rows)).tolist() == expected


@pytest.mark.parametrize("rows", [[], [0, 1, 2], [3, 4], [4, 3], [2, -1, 4], [-1, 0, 1], [-1]])
def test_take_rows_takes_slices_and_single_rows(rows):
    table = corpus(range(5))
    taken = take_rows(table, np.array(rows, dtype=np.int64))
    assert taken.to_pylist() == [
        table.slice(row, 1).to_pylist()[0] if row >= 0 else dict.fromkeys(table.column_names) for row in rows
    ]
