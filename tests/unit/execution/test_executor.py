"""The local executor. (All tests with the fixture ``cluster`` exercise the Ray executor.)"""

import inspect
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.errors import TrainingError
from mrcg.execution.executor import Executor, LocalExecutor, silent


@given(st.lists(st.integers()), st.integers(0, 2**40), st.integers(0, 4))
def test_results_come_in_the_order_of_the_items(items, bytes_each, gpus_each):
    assert list(LocalExecutor().map(str, items, bytes_each, gpus_each)) == [str(item) for item in items]


def test_an_item_is_computed_when_its_result_is_requested():
    done = []

    def work(item):
        done.append(item)
        return item

    results = LocalExecutor().map(work, [1, 2, 3])
    assert done == []
    assert next(results) == 1
    assert done == [1]
    assert list(results) == [2, 3]


def test_an_error_is_raised_unchanged_and_stops_the_map():
    done = []

    def work(item):
        if item == 2:
            raise TrainingError("an item that fails")
        done.append(item)
        return item

    with pytest.raises(TrainingError, match="an item that fails"):
        list(LocalExecutor().map(work, [1, 2, 3]))
    assert done == [1]


def test_no_items_give_no_results():
    assert list(LocalExecutor().map(lambda item: 1 / 0, [])) == []


def assert_same_signature(executor):
    """Callers must be able to use any executor in the same way."""
    protocol, actual = (inspect.signature(cls.map).parameters for cls in (Executor, executor))
    assert list(actual) == list(protocol)
    assert [p.default for p in actual.values()] == [p.default for p in protocol.values()]


def test_the_local_executor_has_the_signature_of_the_protocol():
    assert_same_signature(LocalExecutor)


@pytest.mark.slow
def test_the_ray_executor_has_the_same_signature_and_needs_no_cluster_for_no_items():
    from mrcg_jobs.ray_runtime.executor import RayExecutor

    assert_same_signature(RayExecutor)
    assert list(RayExecutor().map(lambda item: 1 / 0, [])) == []


def test_silent_progress_prints_nothing(capsys):
    silent(1, 2, "a note")
    assert capsys.readouterr() == ("", "")


def test_freed_memory_returns_to_the_system():
    def resident_kib() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    def work(_: int) -> int:
        # Like inverted lists: each block is too small to be mapped separately.
        blocks = [bytearray(30_000) for _ in range(10_000)]
        last = bytes(100)  # keeps the end of the heap in use, so that freed memory below it does not return by itself
        kept.append(last)
        return len(blocks)

    kept: list[bytes] = []
    before = resident_kib()
    assert list(LocalExecutor().map(work, [1])) == [10_000]
    assert resident_kib() - before < 150_000
