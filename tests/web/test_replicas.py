"""What the replicas and the fan-out do, without a cluster: a local replica of each."""

import asyncio
import time

import numpy as np
import pytest

from mrcg.config.settings import ServeSettings
from mrcg.errors import NotFoundError
from mrcg.retrieval.hot_swap import ReleaseNotLoadedError
from mrcg.retrieval.merge import HitDetails, ShardHits
from mrcg.retrieval.query import Scope
from mrcg.retrieval.search import Facts, RequestContext, StageUnavailableError
from mrcg_serve import remote_stages
from mrcg_serve.remote_stages import RemoteStages
from mrcg_serve.replicas import together


def test_a_batch_of_two_releases_is_worked_on_release_by_release():
    calls = []

    def work(loaded, items):
        calls.append((loaded, items))
        return [f"{loaded}{item}" for item in items]

    old, new = "old", "new"
    assert together([(old, 1), (new, 2), (old, 3)], work) == ["old1", "new2", "old3"]
    assert calls == [("old", [1, 3]), ("new", [2])]


class Method:
    """A method of a deployment: what its replicas do, in turn, each time for one item."""

    def __init__(self, *outcomes):
        self.outcomes, self.calls = list(outcomes), 0

    async def remote(self, contexts, items):
        assert len(contexts) == len(items) == 1
        self.calls += 1
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, StageUnavailableError):
            raise outcome
        return [outcome]


class Handle:
    def __init__(self, **methods):
        self.__dict__.update(methods)

    def __getattr__(self, name):
        return Method()  # nobody asks it


def context(seconds=1e9):
    return RequestContext("test", None, time.time() + seconds, 1, "trace")


MISSING = ReleaseNotLoadedError("release 1 is not loaded here (here: 2)")


def test_another_replica_is_asked_while_one_lacks_the_release():
    embed = Method(MISSING, MISSING, "vector")
    asked = RemoteStages(Handle(embed=embed), [Handle()], Handle())
    assert asyncio.run(asked.embed(context(), None)) == "vector"
    embed.outcomes, embed.calls = [MISSING] * 20, 0
    with pytest.raises(ReleaseNotLoadedError):
        asyncio.run(asked.embed(context(), None))
    assert embed.calls == remote_stages.ASKED


def near(rows, shards=1):
    return ShardHits(rows, [float(row) for row in rows], None, float(min(rows)), 10, len(rows), shards, 2)


def fetched(rows):
    facts = [Facts(None, None, None, None, "g") for _ in rows]
    return HitDetails([f"i{row}" for row in rows], facts, np.zeros((len(rows), 2), dtype=np.float16))


def search(first, second, seconds=1e9, part_ms=2_000):
    asked = RemoteStages(Handle(), [first, second], Handle(), ServeSettings(part_ms=part_ms))
    return asyncio.run(asked.search(context(seconds), None, 3, Scope()))


def test_parts_are_put_together():
    found = search(
        Handle(near=Method(near([1, 4])), fetch=Method(fetched([1, 4]))),
        Handle(near=Method(near([2, 7])), fetch=Method(fetched([2]))),
    )
    assert (found.image_ids, found.shards, found.of) == (["i1", "i2", "i4"], 2, 2)
    assert (found.allowed, found.passing) == (20, 4)


OUT = StageUnavailableError("the searcher is overloaded or down")


@pytest.mark.parametrize("fetch", [True, False], ids=["while it is fetched from", "while it is searched"])
def test_without_one_part_the_others_answer_and_say_so(fetch):
    lost = Handle(near=Method(near([0, 2])), fetch=Method(OUT)) if fetch else Handle(near=Method(OUT))
    # Of three wanted the lost part had two: then only one was fetched from the other at first.
    turns = [fetched([1]), fetched([1, 4])] if fetch else [fetched([1, 4])]
    found = search(Handle(near=Method(near([1, 4])), fetch=Method(*turns)), lost)
    assert (found.image_ids, found.shards, found.of) == (["i1", "i4"], 1, 2)


def test_a_part_that_is_late_is_not_waited_for():
    class Slow:
        async def remote(self, *values):
            await asyncio.sleep(10)

    start = time.monotonic()
    found = search(Handle(near=Method(near([1, 4])), fetch=Method(fetched([1, 4]))), Handle(near=Slow()), part_ms=100)
    assert (found.image_ids, found.shards) == (["i1", "i4"], 1)
    assert time.monotonic() - start < 5


def test_without_any_part_nobody_answers():
    with pytest.raises(StageUnavailableError, match="no searcher answers"):
        search(Handle(near=Method(OUT)), Handle(near=Method(OUT)))


def test_an_image_is_looked_up_in_all_parts():
    absent = NotFoundError("no image a")

    def look_up(first, second):
        asked = RemoteStages(Handle(), [Handle(look_up=Method(first)), Handle(look_up=Method(second))], Handle())
        return asyncio.run(asked.look_up(context(), "a"))

    assert look_up(absent, "vector") == look_up("vector", OUT) == "vector"
    with pytest.raises(NotFoundError):
        look_up(absent, absent)
    with pytest.raises(StageUnavailableError):
        look_up(absent, OUT)


def test_a_stage_that_is_late_is_unavailable():
    class Slow:
        async def remote(self, *values):
            await asyncio.sleep(10)

    asked = RemoteStages(Handle(embed=Slow()), [Handle()], Handle())
    with pytest.raises(StageUnavailableError, match="did not answer before the deadline"):
        asyncio.run(asked.embed(context(0.05), None))
