import asyncio
import time

import httpx
import pytest

from mrcg.api import client as module
from mrcg.api.client import AsyncClient, Client
from mrcg.api.requests import ImageIdQuery
from mrcg.api.responses import Answer
from mrcg.errors import ServiceError

ANSWER = Answer(
    release=3,
    request_id="r",
    hits=[],
    classes={},
    reranked=True,
    partial=False,
    shards_answered=1,
    shards=1,
    requested=10,
    found=0,
    allowed=0,
    passing=0,
    out_of_distribution=False,
    milliseconds={},
)
GOOD = httpx.Response(200, text=ANSWER.model_dump_json())
BUSY = httpx.Response(503, json={"detail": "overloaded"}, headers={"Retry-After": "1"})


@pytest.fixture
def service(monkeypatch):
    """Responses of a fake service in order, and the pauses of the client, which are recorded and skipped."""
    answers, pauses = [], []

    def reply(request):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    sync, asynchronous = httpx.Client, httpx.AsyncClient
    transport = httpx.MockTransport(reply)
    monkeypatch.setattr(module.httpx, "Client", lambda **options: sync(transport=transport, **options))
    monkeypatch.setattr(module.httpx, "AsyncClient", lambda **options: asynchronous(transport=transport, **options))
    monkeypatch.setattr(time, "sleep", pauses.append)

    async def pause(seconds):
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", pause)
    return answers, pauses


def ask(url="http://here", **options):
    with Client(url, **options) as client:
        return client.search(ImageIdQuery("a"))


def ask_async(url="http://here", **options):
    async def run():
        async with AsyncClient(url, **options) as client:
            return await client.search(ImageIdQuery("a"))

    return asyncio.run(run())


both = pytest.mark.parametrize("ask", [ask, ask_async], ids=["waiting", "asyncio"])


@both
def test_temporary_failures_are_retried(service, ask):
    answers, pauses = service
    answers += [BUSY, httpx.ConnectError("refused"), GOOD]
    assert ask() == ANSWER
    assert len(pauses) == 2
    assert pauses[0] >= 1, "at least Retry-After"
    assert 0.2 <= pauses[1] <= 0.4


@both
def test_other_failures_are_not_retried(service, ask):
    answers, pauses = service
    answers += [httpx.Response(422, json={"detail": "k = 0: ask for 1 to 50 hits"})]
    with pytest.raises(ServiceError, match="answered 422: k = 0"):
        ask()
    assert pauses == []


@both
def test_a_500_of_the_proxy_is_retried_and_one_of_the_service_is_not(service, ask):
    answers, pauses = service
    answers += [httpx.Response(500, text="Internal Server Error"), GOOD]
    assert ask() == ANSWER
    headers = {"content-type": "application/problem+json"}
    answers += [httpx.Response(500, json={"detail": "the service failed; see its log for the reason"}, headers=headers)]
    with pytest.raises(ServiceError, match="500: the service failed"):
        ask()
    assert len(pauses) == 1


@both
def test_after_the_last_retry_the_last_error_is_raised(service, ask):
    answers, _ = service
    answers += [httpx.ConnectError("refused"), BUSY, BUSY, BUSY]
    with pytest.raises(ServiceError, match="answered 503: overloaded"):
        ask()
    answers += [httpx.ConnectError("refused")] * 2
    with pytest.raises(ServiceError, match="cannot be reached .ConnectError.: is `mrcg serve` running there"):
        ask(retries=1)


@both
def test_no_retry_starts_after_the_timeout(service, ask):
    answers, pauses = service
    answers += [BUSY]
    with pytest.raises(ServiceError, match="503"):
        ask(timeout=0.5)
    assert pauses == []


@both
def test_an_unreadable_answer_is_an_error(service, ask):
    answers, _ = service
    answers += [httpx.Response(200, json={"hits": 1})]
    with pytest.raises(ServiceError, match="cannot read: use the client of the same version as the service"):
        ask()
