import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.index_build.build_plan import facts_table, places_of, take_rows
from mrcg.storage import schemas

NAMES = [name for name in schemas.ROWS.names if name != "row"]


def corpus(numbers):
    """A table of scans with these numbers as ids."""
    columns = {name: pa.array([f"{name}{number}" for number in numbers]) for name in NAMES if name != "year"}
    columns["year"] = pa.array([number % 100 for number in numbers], pa.int16())
    return facts_table(pa.table({name: columns[name] for name in NAMES}))


def ids(numbers):
    return pa.array([f"image_id{number}" for number in numbers], pa.string())


@given(st.lists(st.integers(0, 60), unique=True), st.integers(0, 60), st.integers(0, 10), st.integers(0, 3))
def test_scans_are_found_wherever_they_are_now(numbers, keep, added, seed):
    """After nothing, after new ones came behind, after some went, after all were put in another order."""
    rng = np.random.default_rng(seed)
    part = take_rows(corpus(numbers), rng.permutation(len(numbers)))
    now = [number for number in numbers if number < keep or seed < 2] + list(range(100, 100 + added))
    if seed == 3:
        rng.shuffle(now)
    places = places_of(ids(now), part)
    expected = [now.index(int(one[8:])) if int(one[8:]) in now else -1 for one in part["image_id"].to_pylist()]
    assert places.tolist() == expected
    # What is gone stays so, also of a part that lacked some before.
    assert places_of(ids(now), take_rows(corpus(now), places)).tolist() == expected


@pytest.mark.parametrize("rows", [[], [0, 1, 2], [3, 4], [4, 3], [2, -1, 4], [-1, 0, 1], [-1]])
def test_rows_are_taken_together_or_one_by_one(rows):
    table = corpus(range(5))
    taken = take_rows(table, np.array(rows, dtype=np.int64))
    assert taken.to_pylist() == [
        table.slice(row, 1).to_pylist()[0] if row >= 0 else dict.fromkeys(table.column_names) for row in rows
    ]
