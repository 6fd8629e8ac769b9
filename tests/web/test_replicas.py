"""Replicas and remote stages without a cluster: each deployment is a fake in this process."""

import asyncio
import time

import numpy as np
import pytest

from mrcg.config.service import ServeSettings
from mrcg.errors import NotFoundError, ReleaseNotLoadedError, StageUnavailableError
from mrcg.retrieval.merge import HitDetails, ShardHits
from mrcg.retrieval.query import Scope
from mrcg.retrieval.search import GalleryFacts, RequestContext
from mrcg_serve import remote_stages
from mrcg_serve.remote_stages import RemoteStages
from mrcg_serve.replicas import run_by_release


def test_a_batch_with_two_releases_runs_once_for_each():
    calls = []

    def work(loaded, items):
        calls.append((loaded, items))
        return [f"{loaded}{item}" for item in items]

    old, new = "old", "new"
    assert run_by_release([(old, 1), (new, 2), (old, 3)], work) == ["old1", "new2", "old3"]
    assert calls == [("old", [1, 3]), ("new", [2])]


class Method:
    """A method of a deployment with given outcomes, one for each call; each call has one item."""

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
        return Method()  # it is never called


def context(seconds=1e9):
    return RequestContext("test", None, time.time() + seconds, 1, "trace")


MISSING = ReleaseNotLoadedError("release 1 is not loaded here (loaded: 2)")


def test_a_call_is_repeated_while_replicas_lack_the_release():
    embed = Method(MISSING, MISSING, "vector")
    stages = RemoteStages(Handle(embed=embed), [Handle()], Handle())
    assert asyncio.run(stages.embed(context(), None)) == "vector"
    embed.outcomes, embed.calls = [MISSING] * 20, 0
    with pytest.raises(ReleaseNotLoadedError):
        asyncio.run(stages.embed(context(), None))
    assert embed.calls == remote_stages.MAX_TRIES


def near(rows, shards=1):
    return ShardHits(rows, [float(row) for row in rows], None, float(min(rows)), 10, len(rows), shards, 2)


def fetched(rows):
    facts = [GalleryFacts(None, None, None, None, "g") for _ in rows]
    return HitDetails([f"i{row}" for row in rows], facts, np.zeros((len(rows), 2), dtype=np.float16))


def search(first, second, seconds=1e9, part_ms=2_000):
    stages = RemoteStages(Handle(), [first, second], Handle(), ServeSettings(part_ms=part_ms))
    return asyncio.run(stages.search(context(seconds), None, 3, Scope()))


def test_hits_of_all_parts_are_merged():
    hits = search(
        Handle(near=Method(near([1, 4])), fetch=Method(fetched([1, 4]))),
        Handle(near=Method(near([2, 7])), fetch=Method(fetched([2]))),
    )
    assert (hits.image_ids, hits.shards, hits.total_shards) == (["i1", "i2", "i4"], 2, 2)
    assert (hits.allowed, hits.passing) == (20, 4)


UNAVAILABLE = StageUnavailableError("the searcher is overloaded or down")


@pytest.mark.parametrize("fetch", [True, False], ids=["during fetch", "during search"])
def test_an_unavailable_part_is_left_out_and_counted(fetch):
    lost = Handle(near=Method(near([0, 2])), fetch=Method(UNAVAILABLE)) if fetch else Handle(near=Method(UNAVAILABLE))
    # The lost part had two of the three nearest, so at first only one was fetched from the other part.
    outcomes = [fetched([1]), fetched([1, 4])] if fetch else [fetched([1, 4])]
    hits = search(Handle(near=Method(near([1, 4])), fetch=Method(*outcomes)), lost)
    assert (hits.image_ids, hits.shards, hits.total_shards) == (["i1", "i4"], 1, 2)


def test_a_slow_part_is_left_out():
    class Slow:
        async def remote(self, *values):
            await asyncio.sleep(10)

    start = time.monotonic()
    hits = search(Handle(near=Method(near([1, 4])), fetch=Method(fetched([1, 4]))), Handle(near=Slow()), part_ms=100)
    assert (hits.image_ids, hits.shards) == (["i1", "i4"], 1)
    assert time.monotonic() - start < 5


def test_without_any_part_the_search_fails():
    with pytest.raises(StageUnavailableError, match="no searcher responds; retry"):
        search(Handle(near=Method(UNAVAILABLE)), Handle(near=Method(UNAVAILABLE)))


def test_an_image_is_looked_up_in_all_parts():
    absent = NotFoundError("no image a")

    def look_up(first, second):
        stages = RemoteStages(Handle(), [Handle(look_up=Method(first)), Handle(look_up=Method(second))], Handle())
        return asyncio.run(stages.look_up(context(), "a"))

    assert look_up(absent, "vector") == look_up("vector", UNAVAILABLE) == "vector"
    with pytest.raises(NotFoundError):
        look_up(absent, absent)
    with pytest.raises(StageUnavailableError):
        look_up(absent, UNAVAILABLE)


def test_a_stage_that_misses_the_deadline_is_unavailable():
    class Slow:
        async def remote(self, *values):
            await asyncio.sleep(10)

    stages = RemoteStages(Handle(embed=Slow()), [Handle()], Handle())
    with pytest.raises(StageUnavailableError, match="did not answer before the deadline"):
        asyncio.run(stages.embed(context(0.05), None))
