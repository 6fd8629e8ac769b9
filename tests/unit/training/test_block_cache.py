import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.storage.store import Store
from mrcg.training.block_cache import MappedRows, blocks_of, make_block, map_blocks


@given(st.integers(1, 200), st.integers(1, 2**26), st.integers(1, 9))
def test_blocks_hold_every_row_once_and_give_every_worker_one(count, row_bytes, shares):
    blocks = blocks_of(count, row_bytes, shares)
    assert [row for block in blocks for row in block] == list(range(count))
    assert len(blocks) >= min(shares, count)
    assert all(len(block) * row_bytes <= 2**25 or len(block) == 1 for block in blocks)


@pytest.mark.parametrize("url", ["folder", "memory://arrays"])
def test_rows_come_in_the_order_asked_for(url, tmp_path):
    store = Store(str(tmp_path / "store") if url == "folder" else url)
    whole = np.arange(60, dtype=np.float32).reshape(20, 3)
    blocks = [range(7), range(7, 19), range(19, 20)]
    for block in blocks:
        make_block(store, "work/x", block, lambda block: whole[block.start : block.stop])
    rows = map_blocks(store, "work/x", blocks)
    assert isinstance(rows, MappedRows)
    assert len(rows) == 20
    wanted = np.array([19, 0, 8, 8, 6, 7])
    assert np.array_equal(rows[wanted], whole[wanted])
    assert np.array_equal(rows[5:9], whole[5:9])
    assert np.array_equal(rows[np.array([], dtype=int)], whole[:0])


def test_a_block_that_is_there_is_not_made_again(tmp_path):
    store = Store(str(tmp_path))
    made = []
    for _ in range(2):
        make_block(store, "x", range(2), lambda block: made.append(block) or np.zeros(2))
    assert made == [range(2)]
