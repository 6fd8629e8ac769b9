"""Executor of this process. (Those of Ray are tested by whatever runs on ``cluster``.)"""

import inspect
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.errors import TrainingError
from mrcg.execution.executor import Executor, LocalExecutor, silent


@given(st.lists(st.integers()), st.integers(0, 2**40), st.integers(0, 4))
def test_results_come_in_the_order_of_the_pieces(items, bytes_each, gpus_each):
    assert list(LocalExecutor().map(str, items, bytes_each, gpus_each)) == [str(item) for item in items]


def test_a_piece_is_done_when_its_result_is_asked_for():
    done = []

    def work(item):
        done.append(item)
        return item

    results = LocalExecutor().map(work, [1, 2, 3])
    assert done == []
    assert next(results) == 1
    assert done == [1]
    assert list(results) == [2, 3]


def test_an_error_of_a_piece_comes_out_as_it_was_raised_and_ends_the_work():
    done = []

    def work(item):
        if item == 2:
            raise TrainingError("a piece that cannot be done")
        done.append(item)
        return item

    with pytest.raises(TrainingError, match="a piece that cannot be done"):
        list(LocalExecutor().map(work, [1, 2, 3]))
    assert done == [1]


def test_no_pieces_are_no_work():
    assert list(LocalExecutor().map(lambda item: 1 / 0, [])) == []


def assert_is_like_all_hands(executor):
    """Whoever cuts work into pieces does not know who does them."""
    wanted, got = (inspect.signature(one.map).parameters for one in (Executor, executor))
    assert list(got) == list(wanted)
    assert [one.default for one in got.values()] == [one.default for one in wanted.values()]


def test_own_hands_are_given_their_work_as_all_are():
    assert_is_like_all_hands(LocalExecutor)


@pytest.mark.slow
def test_hands_on_a_cluster_are_given_it_alike_and_without_pieces_ask_no_cluster():
    from mrcg_jobs.ray_runtime.executor import RayExecutor

    assert_is_like_all_hands(RayExecutor)
    assert list(RayExecutor().map(lambda item: 1 / 0, [])) == []


def test_silence_says_nothing(capsys):
    silent(1, 2, "a note")
    assert capsys.readouterr() == ("", "")


def test_memory_that_a_piece_no_longer_needs_goes_back_to_the_system():
    def held() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    def work(_: int) -> int:
        pieces = [
            bytearray(30_000) for _ in range(10_000)
        ]  # as inverted lists are: each too small for a map of its own
        last = bytes(100)  # at the end of the heap: nothing below it is given back by itself
        kept.append(last)
        return len(pieces)

    kept: list[bytes] = []
    before = held()
    assert list(LocalExecutor().map(work, [1])) == [10_000]
    assert held() - before < 150_000
