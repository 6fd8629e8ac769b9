import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.storage.store import Store
from mrcg.training.block_cache import MappedRows, blocks_of, make_block, map_blocks


@given(st.integers(1, 200), st.integers(1, 2**26), st.integers(1, 9))
def test_blocks_cover_every_row_once_and_give_every_worker_a_block(count, row_bytes, shares):
    blocks = blocks_of(count, row_bytes, shares)
    assert [row for block in blocks for row in block] == list(range(count))
    assert len(blocks) >= min(shares, count)
    assert all(len(block) * row_bytes <= 2**25 or len(block) == 1 for block in blocks)


@pytest.mark.parametrize("url", ["folder", "memory://arrays"])
def test_rows_are_returned_in_the_given_order(url, tmp_path):
    store = Store(str(tmp_path / "store") if url == "folder" else url)
    array = np.arange(60, dtype=np.float32).reshape(20, 3)
    blocks = [range(7), range(7, 19), range(19, 20)]
    for block in blocks:
        make_block(store, "work/x", block, lambda block: array[block.start : block.stop])
    rows = map_blocks(store, "work/x", blocks)
    assert isinstance(rows, MappedRows)
    assert len(rows) == 20
    numbers = np.array([19, 0, 8, 8, 6, 7])
    assert np.array_equal(rows[numbers], array[numbers])
    assert np.array_equal(rows[5:9], array[5:9])
    assert np.array_equal(rows[np.array([], dtype=int)], array[:0])


def test_an_existing_block_is_not_written_again(tmp_path):
    store = Store(str(tmp_path))
    calls = []
    for _ in range(2):
        make_block(store, "x", range(2), lambda block: calls.append(block) or np.zeros(2))
    assert calls == [range(2)]
