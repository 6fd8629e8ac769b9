"""One call for many requests: nothing waits without need, nothing is lost, and each gets its own outcome."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.errors import NotFoundError
from mrcg.retrieval.search import RequestContext
from mrcg_serve import batching
from mrcg_serve.batching import Coalescer


def context(seconds=60.0):
    return RequestContext("test", None, time.time() + seconds, 1, "trace")


class Stage:
    """Doubles what it is asked, and says what came together."""

    def __init__(self, seconds=0.0):
        self.seconds, self.calls, self.at_once, self.most_at_once = seconds, [], 0, 0

    async def __call__(self, contexts, items):
        self.calls.append(list(items))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.seconds)
        self.at_once -= 1
        return [NotFoundError(f"no {item}") if item < 0 else 2 * item for item in items]


@given(
    arrivals=st.lists(st.tuples(st.integers(-3, 100), st.integers(0, 3)), max_size=40),
    most=st.integers(1, 8),
    at_once=st.integers(1, 3),
)
def test_everybody_gets_their_own_outcome_in_calls_of_at_most_so_many(arrivals, most, at_once):
    stage = Stage()
    together = Coalescer(stage, most, at_once)

    async def one(item, turns):
        for _ in range(turns):
            await asyncio.sleep(0)
        try:
            return await together(context(), item)
        except NotFoundError as error:
            return str(error)

    async def run():
        return await asyncio.gather(*(one(*arrival) for arrival in arrivals))

    assert asyncio.run(run()) == [f"no {item}" if item < 0 else 2 * item for item, _ in arrivals]
    assert sorted(item for call in stage.calls for item in call) == sorted(item for item, _ in arrivals)
    assert all(1 <= len(call) <= most for call in stage.calls)
    assert stage.most_at_once <= at_once


def test_what_comes_while_a_call_is_under_way_goes_together_with_the_next():
    stage = Stage(0.05)

    async def run():
        together = Coalescer(stage, 16, 1)
        first = asyncio.create_task(together(context(), 0))
        await asyncio.sleep(0.01)
        rest = [asyncio.create_task(together(context(), item)) for item in range(1, 6)]
        return await asyncio.gather(first, *rest)

    assert asyncio.run(run()) == [0, 2, 4, 6, 8, 10]
    assert stage.calls == [[0], [1, 2, 3, 4, 5]]


def test_a_call_that_fails_fails_for_all_in_it_and_the_next_goes_on():
    async def run():
        broken = True

        async def call(contexts, items):
            if broken:
                raise ConnectionError("it died")
            return items

        together = Coalescer(call, 16, 1)
        lost = await asyncio.gather(*(together(context(), item) for item in range(3)), return_exceptions=True)
        broken = False
        return lost, await together(context(), 7)

    lost, found = asyncio.run(run())
    assert [str(error) for error in lost] == ["it died"] * 3
    assert found == 7


def test_a_replica_that_hangs_keeps_others_waiting_for_a_moment_only(monkeypatch):
    monkeypatch.setattr(batching, "PATIENCE", 0.05)

    async def run():
        async def call(contexts, items):
            if 0 in items:
                await asyncio.sleep(30)
            return items

        together = Coalescer(call, 16, 1)
        hanging = asyncio.create_task(together(context(), 0))
        await asyncio.sleep(0.01)
        start = time.monotonic()
        found = await together(context(), 1)
        hanging.cancel()
        return found, time.monotonic() - start

    found, seconds = asyncio.run(run())
    assert found == 1
    assert seconds < 5


def test_a_call_ends_at_the_latest_of_its_deadlines():
    async def run():
        async def call(contexts, items):
            await asyncio.sleep(30)

        await Coalescer(call, 16, 1)(context(0.05), 1)

    with pytest.raises(TimeoutError):
        asyncio.run(run())


def test_who_has_gone_is_not_asked_for():
    stage = Stage(0.05)

    async def run():
        together = Coalescer(stage, 16, 1)
        first = asyncio.create_task(together(context(), 1))
        await asyncio.sleep(0.01)
        gone, stays = (asyncio.create_task(together(context(), item)) for item in (2, 3))
        await asyncio.sleep(0.01)
        gone.cancel()
        return await asyncio.gather(first, stays)

    assert asyncio.run(run()) == [2, 6]
    assert stage.calls == [[1], [3]]
