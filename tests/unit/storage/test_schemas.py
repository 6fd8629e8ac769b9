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
    assert schemas.from_parquet(data, ["number"]).equals(table.select(["number"]))
    assert schemas.from_ipc(schemas.to_ipc(table)).equals(table)
