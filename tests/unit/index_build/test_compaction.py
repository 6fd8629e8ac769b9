import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.index.layout import PartFacts
from mrcg.index_build.compaction import (
    ABSORB_FACTOR,
    KeptPart,
    NewPart,
    plan_parts,
    recall_outdated,
    retraining_due,
    split_part,
)


def part(shard, rows, number=0):
    facts = PartFacts(shard=shard, name=f"{shard:05d}-000-{number:02d}", rows=len(rows), live=len(rows))
    return KeptPart(facts, np.array(rows, dtype=np.int64))


def new_rows(**rows):
    return {int(shard[1:]): np.array(numbers, dtype=np.int64) for shard, numbers in rows.items()}


@st.composite
def galleries(draw):
    """Parts of up to three shards with some deleted rows, and new rows; no row occurs twice."""
    sizes = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 30)), max_size=6))
    added = draw(st.dictionaries(st.integers(0, 3), st.integers(1, 60), max_size=3))
    gone = draw(st.floats(0, 1))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    numbers = iter(rng.permutation(sum(size for _, size in sizes) + sum(added.values())).tolist())
    parts = []
    for place, (shard, size) in enumerate(sizes):
        rows = np.array([next(numbers) for _ in range(size)])
        # Some parts have no deleted rows.
        share = gone * rng.integers(0, 2)
        parts.append(part(shard, np.where(rng.random(size) < share, -1, rows), place))
    return parts, {shard: np.sort([next(numbers) for _ in range(count)]) for shard, count in added.items()}


def live(rows):
    return sorted(rows[rows >= 0].tolist())


@given(galleries(), st.floats(0, 1), st.booleans())
def test_every_live_row_is_in_exactly_one_part_of_its_shard(gallery, compact_above, purge):
    parts, new = gallery
    kept, new_parts = plan_parts(parts, new, compact_above, purge)
    for shard in range(4):
        before = itertools.chain(
            *(live(p.rows) for p in parts if p.facts.shard == shard), new.get(shard, np.empty(0)).tolist()
        )
        after = itertools.chain(
            *(live(p.rows) for p in kept if p.facts.shard == shard),
            *(new_part.rows.tolist() for new_part in new_parts if new_part.shard == shard),
        )
        assert sorted(after) == sorted(before)


@given(galleries(), st.floats(0, 1), st.booleans())
def test_kept_parts_are_unchanged_and_new_parts_are_ascending(gallery, compact_above, purge):
    kept, new_parts = plan_parts(*gallery, compact_above, purge)
    assert all(any(p is old for old in gallery[0]) for p in kept)
    assert all(len(new_part.rows) and (np.diff(new_part.rows) > 0).all() for new_part in new_parts)


@given(galleries(), st.floats(0, 1), st.booleans())
def test_kept_parts_have_few_deleted_rows_and_none_after_a_purge(gallery, compact_above, purge):
    for p in plan_parts(*gallery, compact_above, purge)[0]:
        gone = int((p.rows < 0).sum())
        assert gone <= compact_above * len(p.rows)
        assert gone < len(p.rows)
        assert not (purge and gone)


@given(galleries(), st.floats(0, 1), st.booleans())
def test_large_parts_without_deleted_rows_are_kept(gallery, compact_above, purge):
    """A large part without deleted rows is never rebuilt, whatever happens to the others."""
    parts, new = gallery
    kept, _ = plan_parts(parts, new, compact_above, purge)
    for old in parts:
        size = len(new.get(old.facts.shard, ()))
        others = sum(len(p.rows) for p in parts if p.facts.shard == old.facts.shard and p is not old)
        if (old.rows >= 0).all() and len(old.rows) > ABSORB_FACTOR * (size + others):
            assert any(p is old for p in kept)


@pytest.mark.parametrize(("gone", "purge", "rebuilt"), [(2, False, False), (3, False, True), (1, True, True)])
def test_a_part_is_rebuilt_above_the_threshold_or_to_purge(gone, purge, rebuilt):
    rows = [-1] * gone + list(range(10 - gone))
    kept, new_parts = plan_parts([part(0, rows)], {}, 0.2, purge)
    assert (len(kept), len(new_parts)) == ((0, 1) if rebuilt else (1, 0))


def test_a_part_without_live_rows_is_dropped():
    assert plan_parts([part(0, [-1, -1])], {}, 1.0, False) == ([], [])


def test_new_rows_absorb_small_parts_from_the_last_on():
    large, small, last = part(0, range(100), 0), part(0, range(100, 112), 1), part(0, range(112, 116), 2)
    kept, new_parts = plan_parts([large, small, last], new_rows(s0=[116, 117, 118]), 0.2, False)
    # 4 <= 2 * 3, then 12 <= 2 * 7, but 100 > 2 * 19.
    assert kept == [large]
    assert [new_part.rows.tolist() for new_part in new_parts] == [list(range(100, 119))]


def test_an_absorbed_part_loses_its_deleted_rows():
    kept, new_parts = plan_parts([part(0, [5, -1, 3, 4, 6, 7])], new_rows(s0=[9, 10, 11]), 0.5, False)
    assert not kept
    assert new_parts[0].rows.tolist() == [3, 4, 5, 6, 7, 9, 10, 11]


def test_new_rows_of_one_shard_do_not_change_other_shards():
    parts = [part(0, [0, 1]), part(1, [2, 3])]
    kept, new_parts = plan_parts(parts, new_rows(s1=[4]), 0.2, False)
    assert kept == [parts[0]]
    assert [new_part.shard for new_part in new_parts] == [1]


def test_parts_stay_few_while_a_gallery_grows_in_small_steps():
    parts, rows = [], 0
    for number in range(100):
        kept, new_parts = plan_parts(parts, {0: np.arange(rows, rows + 10)}, 0.2, False)
        parts, rows = kept + [part(0, new_part.rows, number) for new_part in new_parts], rows + 10
    assert len(parts) <= 8
    assert sorted(itertools.chain(*(p.rows.tolist() for p in parts))) == list(range(1000))


@given(st.integers(1, 500), st.integers(0, 80))
def test_split_parts_are_equal_and_within_the_limit(count, most):
    split = split_part(NewPart(3, np.arange(count)), most)
    sizes = [len(p.rows) for p in split]
    assert {p.shard for p in split} == {3}
    assert max(sizes) <= max(1, most)
    assert max(sizes) - min(sizes) <= 1
    assert np.concatenate([p.rows for p in split]).tolist() == list(range(count))
    assert len(split) == -(-count // max(1, most))


@pytest.mark.parametrize(
    ("trained_on", "live", "again"), [(100, 200, False), (100, 201, True), (100, 1, False), (0, 3, True)]
)
def test_retraining_is_due_when_a_gallery_has_doubled(trained_on, live, again):
    assert retraining_due(trained_on, live) is again


@pytest.mark.parametrize(
    ("measured", "live", "again"),
    [(100, 110, False), (100, 111, True), (100, 90, False), (100, 89, True), (0, 0, False), (0, 1, True)],
)
def test_recall_is_outdated_when_the_count_changed_by_more_than_a_tenth(measured, live, again):
    assert recall_outdated(measured, live) is again
