"""What the replicas and the fan-out do, without a cluster: a local replica of each."""

import asyncio

import pytest

from mrcg.resident import NotResidentError
from mrcg.search import RequestContext, StageUnavailableError
from mrcg_serve import stages
from mrcg_serve.replicas import together
from mrcg_serve.stages import RemoteStages


def test_a_batch_of_two_releases_is_worked_on_release_by_release():
    calls = []

    def work(loaded, items):
        calls.append((loaded, items))
        return [f"{loaded}{item}" for item in items]

    old, new = "old", "new"
    assert together([old, new, old], [1, 2, 3], work) == ["old1", "new2", "old3"]
    assert calls == [("old", [1, 3]), ("new", [2])]


class Method:
    """A method of a deployment: what its replicas do, in turn."""

    def __init__(self, *outcomes):
        self.outcomes, self.calls = list(outcomes), 0

    async def remote(self, context, *values):
        self.calls += 1
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Handle:
    def __init__(self, **methods):
        self.__dict__.update(methods)


def context(seconds=1e9):
    import time

    return RequestContext("test", None, time.time() + seconds, 1, "trace")


MISSING = NotResidentError("release 1 is not loaded here (here: 2)")


def test_another_replica_is_asked_while_one_lacks_the_release():
    embed = Method(MISSING, MISSING, "vector")
    asked = RemoteStages(Handle(embed=embed), [Handle()], Handle())
    assert asyncio.run(asked.embed(context(), None)) == "vector"
    embed.outcomes, embed.calls = [MISSING] * 20, 0
    with pytest.raises(NotResidentError):
        asyncio.run(asked.embed(context(), None))
    assert embed.calls == stages.ASKED


def test_a_stage_that_is_late_is_unavailable():
    class Slow:
        async def remote(self, *values):
            await asyncio.sleep(10)

    asked = RemoteStages(Handle(embed=Slow()), [Handle()], Handle())
    with pytest.raises(StageUnavailableError, match="did not answer before the deadline"):
        asyncio.run(asked.embed(context(0.05), None))
