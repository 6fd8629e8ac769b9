import sys

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from mrcg.storage import schemas

rows = st.lists(st.tuples(st.one_of(st.none(), st.text(max_size=5)), st.integers(0, 9)), max_size=20)


@given(rows, st.integers(1, 8))
def test_tables_survive_a_round_trip(rows, group):
    table = pa.table({"name": [one for one, _ in rows], "number": [two for _, two in rows]})
    table = table.cast(pa.schema([("name", pa.string()), ("number", pa.int64())]))
    data = schemas.to_parquet(table, group)
    assert schemas.from_parquet(data).equals(table)
    for columns in (["number"], ["number", "name"], []):
        assert schemas.from_parquet(data, columns).equals(table.select(columns))
    assert schemas.from_ipc(schemas.to_ipc(table)).equals(table)


def test_no_thread_of_arrow_holds_the_bytes_that_were_read():
    draws = np.random.default_rng(1)
    data = schemas.to_parquet(pa.table({f"column {c}": draws.random(20_000) for c in range(30)}))
    before = sys.getrefcount(data)
    for _ in range(50):
        schemas.from_parquet(data)
        assert sys.getrefcount(data) == before
