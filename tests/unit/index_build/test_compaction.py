import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.index.layout import PartFacts
from mrcg.index_build.compaction import ABSORB, Fill, Kept, grow, in_pieces, measure_again, train_again


def part(shard, rows, number=0):
    facts = PartFacts(shard=shard, name=f"{shard:05d}-000-{number:02d}", rows=len(rows), live=len(rows))
    return Kept(facts, np.array(rows, dtype=np.int64))


def fresh(**rows):
    return {int(shard[1:]): np.array(some, dtype=np.int64) for shard, some in rows.items()}


@st.composite
def galleries(draw):
    """Parts of up to three shards with some of their rows gone, and new rows; no row stands twice."""
    sizes = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 30)), max_size=6))
    added = draw(st.dictionaries(st.integers(0, 3), st.integers(1, 60), max_size=3))
    gone = draw(st.floats(0, 1))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    numbers = iter(rng.permutation(sum(size for _, size in sizes) + sum(added.values())).tolist())
    parts = []
    for place, (shard, size) in enumerate(sizes):
        rows = np.array([next(numbers) for _ in range(size)])
        # Some parts are whole, as those that nobody touched are.
        share = gone * rng.integers(0, 2)
        parts.append(part(shard, np.where(rng.random(size) < share, -1, rows), place))
    return parts, {shard: np.sort([next(numbers) for _ in range(count)]) for shard, count in added.items()}


def live(rows):
    return sorted(rows[rows >= 0].tolist())


@given(galleries(), st.floats(0, 1), st.booleans())
def test_every_live_row_is_in_one_place_of_its_shard(gallery, compact_above, purge):
    parts, new = gallery
    kept, fills = grow(parts, new, compact_above, purge)
    for shard in range(4):
        before = itertools.chain(
            *(live(one.rows) for one in parts if one.facts.shard == shard), new.get(shard, np.empty(0)).tolist()
        )
        after = itertools.chain(
            *(live(one.rows) for one in kept if one.facts.shard == shard),
            *(fill.rows.tolist() for fill in fills if fill.shard == shard),
        )
        assert sorted(after) == sorted(before)


@given(galleries(), st.floats(0, 1), st.booleans())
def test_what_stays_is_as_it_was_and_what_is_filled_rises(gallery, compact_above, purge):
    kept, fills = grow(*gallery, compact_above, purge)
    assert all(any(one is old for old in gallery[0]) for one in kept)
    assert all(len(fill.rows) and (np.diff(fill.rows) > 0).all() for fill in fills)


@given(galleries(), st.floats(0, 1), st.booleans())
def test_what_stays_has_few_rows_that_are_gone_and_after_a_purge_none(gallery, compact_above, purge):
    for one in grow(*gallery, compact_above, purge)[0]:
        gone = int((one.rows < 0).sum())
        assert gone <= compact_above * len(one.rows)
        assert gone < len(one.rows)
        assert not (purge and gone)


@given(galleries(), st.floats(0, 1), st.booleans())
def test_what_is_filled_is_worth_it(gallery, compact_above, purge):
    """A part that stays whole and large costs nothing, whatever happens around it."""
    parts, new = gallery
    kept, _ = grow(parts, new, compact_above, purge)
    for old in parts:
        size = len(new.get(old.facts.shard, ()))
        others = sum(len(one.rows) for one in parts if one.facts.shard == old.facts.shard and one is not old)
        if (old.rows >= 0).all() and len(old.rows) > ABSORB * (size + others):
            assert any(one is old for one in kept)


@pytest.mark.parametrize(("gone", "purge", "filled"), [(2, False, False), (3, False, True), (1, True, True)])
def test_a_part_is_filled_anew_above_the_threshold_or_to_purge(gone, purge, filled):
    rows = [-1] * gone + list(range(10 - gone))
    kept, fills = grow([part(0, rows)], {}, 0.2, purge)
    assert (len(kept), len(fills)) == ((0, 1) if filled else (1, 0))


def test_a_part_of_which_nothing_is_left_goes():
    assert grow([part(0, [-1, -1])], {}, 1.0, False) == ([], [])


def test_new_rows_take_small_parts_along_from_the_last_one_on():
    large, small, last = part(0, range(100), 0), part(0, range(100, 112), 1), part(0, range(112, 116), 2)
    kept, fills = grow([large, small, last], fresh(s0=[116, 117, 118]), 0.2, False)
    # 4 <= 2 * 3, then 12 <= 2 * 7, but 100 > 2 * 19.
    assert kept == [large]
    assert [fill.rows.tolist() for fill in fills] == [list(range(100, 119))]


def test_what_is_absorbed_leaves_behind_what_is_gone():
    kept, fills = grow([part(0, [5, -1, 3, 4, 6, 7])], fresh(s0=[9, 10, 11]), 0.5, False)
    assert not kept
    assert fills[0].rows.tolist() == [3, 4, 5, 6, 7, 9, 10, 11]


def test_new_rows_of_one_shard_leave_the_others_alone():
    parts = [part(0, [0, 1]), part(1, [2, 3])]
    kept, fills = grow(parts, fresh(s1=[4]), 0.2, False)
    assert kept == [parts[0]]
    assert [fill.shard for fill in fills] == [1]


def test_parts_stay_few_while_a_gallery_grows_by_little():
    parts, rows = [], 0
    for number in range(100):
        kept, fills = grow(parts, {0: np.arange(rows, rows + 10)}, 0.2, False)
        parts, rows = kept + [part(0, fill.rows, number) for fill in fills], rows + 10
    assert len(parts) <= 8
    assert sorted(itertools.chain(*(one.rows.tolist() for one in parts))) == list(range(1000))


@given(st.integers(1, 500), st.integers(0, 80))
def test_pieces_are_equal_and_hold_at_most_what_they_may(count, most):
    pieces = in_pieces(Fill(3, np.arange(count)), most)
    sizes = [len(piece.rows) for piece in pieces]
    assert {piece.shard for piece in pieces} == {3}
    assert max(sizes) <= max(1, most)
    assert max(sizes) - min(sizes) <= 1
    assert np.concatenate([piece.rows for piece in pieces]).tolist() == list(range(count))
    assert len(pieces) == -(-count // max(1, most))


@pytest.mark.parametrize(
    ("trained_on", "live", "again"), [(100, 200, False), (100, 201, True), (100, 1, False), (0, 3, True)]
)
def test_cells_are_learned_again_when_a_gallery_has_doubled(trained_on, live, again):
    assert train_again(trained_on, live) is again


@pytest.mark.parametrize(
    ("measured", "live", "again"),
    [(100, 110, False), (100, 111, True), (100, 90, False), (100, 89, True), (0, 0, False), (0, 1, True)],
)
def test_recall_is_measured_again_when_a_tenth_has_moved(measured, live, again):
    assert measure_again(measured, live) is again
