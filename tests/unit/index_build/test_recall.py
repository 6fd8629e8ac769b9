import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.index.distances import SLACK, Neighbours, nearest
from mrcg.index.engines import Candidates
from mrcg.index.layout import Shape
from mrcg.index_build.recall import DEPTH, STEP, TRIES, Examined, nprobe_or_ef_steps, settle


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_efforts_rise_to_the_most_there_is(first, most):
    found = nprobe_or_ef_steps(first, most)
    assert found == sorted(set(found))
    assert len(found) <= TRIES
    assert max(found) == max(first, min(most, math.ceil(first * STEP ** (TRIES - 1))))
    if first <= most:
        assert found[0] == first
        assert all(after <= max(STEP * before + 1, before + 1) for before, after in itertools.pairwise(found))


def test_where_there_is_nothing_to_raise_one_effort_is_tried():
    assert nprobe_or_ef_steps(0, 100) == [0]
    assert nprobe_or_ef_steps(100, 100) == [100]


PLAIN = Shape(kind="ivf_flat", dim=4, lists=8)


def answers(rows, queries=1):
    """What a search found: these rows for each query, at distances that follow from the row."""
    some = np.full((queries, DEPTH), -1)
    some[:, : len(rows)] = rows
    return nearest(some, np.where(some < 0, np.inf, some).astype(np.float32), DEPTH)


def candidates(rows, queries=1):
    """The same, before the best are taken."""
    near = answers(rows, queries)
    return Candidates(near.rows_qk, near.distances_qk, near.distances_qk)


def coarse(rows, rough):
    """Rows that the codes of an index say are all equally far."""
    some = np.array([rows])
    return Candidates(some, np.full(some.shape, rough, dtype=np.float32), some.astype(np.float32))


@st.composite
def examinations(draw):
    """Two shards of even and odd rows; with each effort some more of them are found, until a shard has enough."""
    wanted = draw(st.floats(0, 1))
    steps = sorted(draw(st.sets(st.integers(1, 99), min_size=1, max_size=5)))
    examined = []
    for parity in range(2):
        rows = list(range(parity, 2 * draw(st.integers(1, 40)), 2))
        found = sorted(draw(st.integers(0, len(rows))) for _ in steps)
        tried = []
        for nprobe_or_ef, many in zip(steps, found, strict=True):
            tried.append((nprobe_or_ef, rows[len(rows) - many :]))
            if many / len(rows) >= wanted:
                break
        examined.append((rows, tried))
    return wanted, steps, examined


@given(examinations(), st.integers(1, 3))
def test_the_least_effort_that_reaches_the_recall_is_taken(examination, queries):
    wanted, steps, shards = examination
    examined = [
        Examined(
            answers(rows, queries), tuple((nprobe_or_ef, candidates(some, queries)) for nprobe_or_ef, some in tried)
        )
        for rows, tried in shards
    ]
    true = sorted(row for rows, _ in shards for row in rows)[:DEPTH]

    def recall(nprobe_or_ef):
        # A shard that stopped earlier had found enough.
        best = [row for _, tried in shards for row in [some for at, some in tried if at <= nprobe_or_ef][-1]]
        return len(set(true) & set(sorted(best)[:DEPTH])) / len(true)

    tried = [nprobe_or_ef for nprobe_or_ef in steps if any(nprobe_or_ef in dict(one) for _, one in shards)]
    expected = next((one for one in tried if recall(one) >= wanted), tried[-1])
    nprobe_or_ef, reached = settle(examined, PLAIN, wanted)
    assert nprobe_or_ef == expected
    assert reached == pytest.approx(recall(expected))


def test_a_recall_that_is_not_reached_is_said_with_the_most_that_was_tried():
    examined = Examined(answers([0, 1, 2, 3]), ((5, candidates([0])), (8, candidates([0, 1]))))
    assert settle([examined], PLAIN, 0.9) == (8, 0.5)
    assert settle([examined], PLAIN, 0.25) == (5, 0.25)


def test_recall_is_of_all_shards_together():
    """A shard that misses what is far off misses nothing that counts."""
    near = Examined(answers(range(DEPTH)), ((3, candidates(range(DEPTH))),))
    far = Examined(answers([1000, 1001]), ((3, candidates([])), (5, candidates([1001]))))
    assert settle([near, far], PLAIN, 1.0) == (3, 1.0)


def test_shards_together_bring_no_more_candidates_than_one_index_does():
    """Each shard alone orders enough of them exactly; of all shards only the roughly nearest are."""
    shape = Shape(kind="ivf_sq", dim=4, lists=8, refine=1)
    room = DEPTH + SLACK
    right = list(range(room))
    # The other shard's are far off, but its codes say that they are near.
    liar = Examined(answers(range(1000, 1000 + DEPTH)), ((3, coarse(range(1000, 1000 + room), 0.0)),))
    honest = Examined(answers(right[:DEPTH]), ((3, coarse(right, 1.0)),))
    assert settle([honest], shape, 1.0) == (3, 1.0)
    assert settle([honest, liar], shape, 1.0) == (3, 0.0)


def test_of_copies_any_are_as_good_as_others():
    """Blank slices are many and all alike: which of them are found says nothing of an index."""
    copies = np.zeros((1, DEPTH), dtype=np.float32)
    exact = Neighbours(np.arange(DEPTH)[None], copies)
    others = Candidates(np.arange(DEPTH)[None] + 700, copies, copies)
    assert settle([Examined(exact, ((3, others),))], PLAIN, 1.0) == (3, 1.0)


def test_neighbours_that_are_not_there_are_wanted_by_nobody():
    assert settle([Examined(answers([], 2), ((4, candidates([], 2)),))], PLAIN, 1.0) == (4, 1.0)
