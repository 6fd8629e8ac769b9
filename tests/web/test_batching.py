"""Batched calls: no request waits without need, none is lost, and each gets its own outcome."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.errors import NotFoundError
from mrcg.retrieval.search import RequestContext
from mrcg_serve import batching
from mrcg_serve.batching import CallBatcher


def context(seconds=60.0):
    return RequestContext("test", None, time.time() + seconds, 1, "trace")


class Stage:
    """Doubles its items, and records which items came in one call."""

    def __init__(self, seconds=0.0):
        self.seconds, self.calls, self.running, self.max_running = seconds, [], 0, 0

    async def __call__(self, contexts, items):
        self.calls.append(list(items))
        self.running += 1
        self.max_running = max(self.max_running, self.running)
        await asyncio.sleep(self.seconds)
        self.running -= 1
        return [NotFoundError(f"no {item}") if item < 0 else 2 * item for item in items]


@given(
    arrivals=st.lists(st.tuples(st.integers(-3, 100), st.integers(0, 3)), max_size=40),
    max_items=st.integers(1, 8),
    max_calls=st.integers(1, 3),
)
def test_each_item_gets_its_own_outcome_and_calls_stay_within_the_limits(arrivals, max_items, max_calls):
    stage = Stage()
    batcher = CallBatcher(stage, max_items, max_calls)

    async def arrive(item, delay):
        for _ in range(delay):
            await asyncio.sleep(0)
        try:
            return await batcher(context(), item)
        except NotFoundError as error:
            return str(error)

    async def run():
        return await asyncio.gather(*(arrive(*arrival) for arrival in arrivals))

    assert asyncio.run(run()) == [f"no {item}" if item < 0 else 2 * item for item, _ in arrivals]
    assert sorted(item for call in stage.calls for item in call) == sorted(item for item, _ in arrivals)
    assert all(1 <= len(call) <= max_items for call in stage.calls)
    assert stage.max_running <= max_calls


def test_items_that_arrive_during_a_call_go_together_in_the_next():
    stage = Stage(0.05)

    async def run():
        batcher = CallBatcher(stage, 16, 1)
        first = asyncio.create_task(batcher(context(), 0))
        await asyncio.sleep(0.01)
        rest = [asyncio.create_task(batcher(context(), item)) for item in range(1, 6)]
        return await asyncio.gather(first, *rest)

    assert asyncio.run(run()) == [0, 2, 4, 6, 8, 10]
    assert stage.calls == [[0], [1, 2, 3, 4, 5]]


def test_a_failed_call_fails_all_its_items_and_the_next_call_works():
    async def run():
        broken = True

        async def call(contexts, items):
            if broken:
                raise ConnectionError("it died")
            return items

        batcher = CallBatcher(call, 16, 1)
        errors = await asyncio.gather(*(batcher(context(), item) for item in range(3)), return_exceptions=True)
        broken = False
        return errors, await batcher(context(), 7)

    errors, result = asyncio.run(run())
    assert [str(error) for error in errors] == ["it died"] * 3
    assert result == 7


def test_a_hanging_replica_holds_up_other_items_only_briefly(monkeypatch):
    monkeypatch.setattr(batching, "SLOW_CALL_S", 0.05)

    async def run():
        async def call(contexts, items):
            if 0 in items:
                await asyncio.sleep(30)
            return items

        batcher = CallBatcher(call, 16, 1)
        hanging = asyncio.create_task(batcher(context(), 0))
        await asyncio.sleep(0.01)
        start = time.monotonic()
        result = await batcher(context(), 1)
        hanging.cancel()
        return result, time.monotonic() - start

    result, seconds = asyncio.run(run())
    assert result == 1
    assert seconds < 5


def test_a_call_ends_at_the_latest_deadline_of_its_items():
    async def run():
        async def call(contexts, items):
            await asyncio.sleep(30)

        await CallBatcher(call, 16, 1)(context(0.05), 1)

    with pytest.raises(TimeoutError):
        asyncio.run(run())


def test_cancelled_items_are_not_sent():
    stage = Stage(0.05)

    async def run():
        batcher = CallBatcher(stage, 16, 1)
        first = asyncio.create_task(batcher(context(), 1))
        await asyncio.sleep(0.01)
        cancelled, kept = (asyncio.create_task(batcher(context(), item)) for item in (2, 3))
        await asyncio.sleep(0.01)
        cancelled.cancel()
        return await asyncio.gather(first, kept)

    assert asyncio.run(run()) == [2, 6]
    assert stage.calls == [[1], [3]]
