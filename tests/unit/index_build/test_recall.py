import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.index.distances import SLACK, Neighbours, nearest
from mrcg.index.engines import Candidates
from mrcg.index.layout import Shape
from mrcg.index_build.recall import DEPTH, STEP, TRIES, ShardSearches, choose_nprobe_or_ef, nprobe_or_ef_steps


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_steps_rise_to_the_limit(first, most):
    found = nprobe_or_ef_steps(first, most)
    assert found == sorted(set(found))
    assert len(found) <= TRIES
    assert max(found) == max(first, min(most, math.ceil(first * STEP ** (TRIES - 1))))
    if first <= most:
        assert found[0] == first
        assert all(after <= max(STEP * before + 1, before + 1) for before, after in itertools.pairwise(found))


def test_a_single_value_is_tried_where_none_can_be_raised():
    assert nprobe_or_ef_steps(0, 100) == [0]
    assert nprobe_or_ef_steps(100, 100) == [100]


PLAIN = Shape(kind="ivf_flat", dim=4, lists=8)


def answers(rows, queries=1):
    """A search result: the same rows for each query, the distance equal to the row."""
    some = np.full((queries, DEPTH), -1)
    some[:, : len(rows)] = rows
    return nearest(some, np.where(some < 0, np.inf, some).astype(np.float32), DEPTH)


def candidates(rows, queries=1):
    """The same as candidates."""
    near = answers(rows, queries)
    return Candidates(near.rows_qk, near.distances_qk, near.distances_qk)


def coarse(rows, rough):
    """Candidates whose rough distances are all equal."""
    some = np.array([rows])
    return Candidates(some, np.full(some.shape, rough, dtype=np.float32), some.astype(np.float32))


@st.composite
def examinations(draw):
    """Two shards of even and odd rows; each larger value finds more of them, until the shard reaches the recall."""
    min_recall = draw(st.floats(0, 1))
    steps = sorted(draw(st.sets(st.integers(1, 99), min_size=1, max_size=5)))
    examined = []
    for parity in range(2):
        rows = list(range(parity, 2 * draw(st.integers(1, 40)), 2))
        found = sorted(draw(st.integers(0, len(rows))) for _ in steps)
        tried = []
        for nprobe_or_ef, many in zip(steps, found, strict=True):
            tried.append((nprobe_or_ef, rows[len(rows) - many :]))
            if many / len(rows) >= min_recall:
                break
        examined.append((rows, tried))
    return min_recall, steps, examined


@given(examinations(), st.integers(1, 3))
def test_the_smallest_value_that_reaches_the_recall_is_chosen(examination, queries):
    min_recall, steps, shards = examination
    examined = [
        ShardSearches(
            answers(rows, queries), tuple((nprobe_or_ef, candidates(some, queries)) for nprobe_or_ef, some in tried)
        )
        for rows, tried in shards
    ]
    true = sorted(row for rows, _ in shards for row in rows)[:DEPTH]

    def recall(nprobe_or_ef):
        # A shard that stopped at a smaller value had found enough.
        best = [row for _, tried in shards for row in [some for at, some in tried if at <= nprobe_or_ef][-1]]
        return len(set(true) & set(sorted(best)[:DEPTH])) / len(true)

    tried = [nprobe_or_ef for nprobe_or_ef in steps if any(nprobe_or_ef in dict(one) for _, one in shards)]
    expected = next((one for one in tried if recall(one) >= min_recall), tried[-1])
    nprobe_or_ef, reached = choose_nprobe_or_ef(examined, PLAIN, min_recall)
    assert nprobe_or_ef == expected
    assert reached == pytest.approx(recall(expected))


def test_an_unreached_recall_is_returned_with_the_largest_value_tried():
    examined = ShardSearches(answers([0, 1, 2, 3]), ((5, candidates([0])), (8, candidates([0, 1]))))
    assert choose_nprobe_or_ef([examined], PLAIN, 0.9) == (8, 0.5)
    assert choose_nprobe_or_ef([examined], PLAIN, 0.25) == (5, 0.25)


def test_recall_is_measured_over_all_shards_together():
    """A shard that only misses distant rows does not lower recall."""
    near = ShardSearches(answers(range(DEPTH)), ((3, candidates(range(DEPTH))),))
    far = ShardSearches(answers([1000, 1001]), ((3, candidates([])), (5, candidates([1001]))))
    assert choose_nprobe_or_ef([near, far], PLAIN, 1.0) == (3, 1.0)


def test_all_shards_together_have_no_more_candidates_than_one_index():
    """Each shard orders enough candidates exactly; over all shards only the nearest by rough distance are."""
    shape = Shape(kind="ivf_sq", dim=4, lists=8, refine=1)
    room = DEPTH + SLACK
    right = list(range(room))
    # The rows of the other shard are distant, but their rough distances are small.
    liar = ShardSearches(answers(range(1000, 1000 + DEPTH)), ((3, coarse(range(1000, 1000 + room), 0.0)),))
    honest = ShardSearches(answers(right[:DEPTH]), ((3, coarse(right, 1.0)),))
    assert choose_nprobe_or_ef([honest], shape, 1.0) == (3, 1.0)
    assert choose_nprobe_or_ef([honest, liar], shape, 1.0) == (3, 0.0)


def test_any_copy_counts_as_found():
    """Blank slices are many and identical: it does not matter which of them are found."""
    copies = np.zeros((1, DEPTH), dtype=np.float32)
    exact = Neighbours(np.arange(DEPTH)[None], copies)
    others = Candidates(np.arange(DEPTH)[None] + 700, copies, copies)
    assert choose_nprobe_or_ef([ShardSearches(exact, ((3, others),))], PLAIN, 1.0) == (3, 1.0)


def test_padding_does_not_lower_recall():
    assert choose_nprobe_or_ef([ShardSearches(answers([], 2), ((4, candidates([], 2)),))], PLAIN, 1.0) == (4, 1.0)
