"""Clients of the service, over HTTP: one that waits and one for asyncio."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import ValidationError

from mrcg.api.requests import EmbeddingQuery, ImageIdQuery, SearchParams
from mrcg.api.responses import Answer, BatchLine
from mrcg.errors import ServiceError

#: Answers after which the same call may go well: overloaded, just changing, or a replica that died.
AGAIN = {502, 503, 504}
#: Seconds before the first retry, and the longest that is waited.
FIRST, LONGEST = 0.2, 5.0


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    words: dict[str, Any] = field(default_factory=dict)


class _Calls:
    """What both clients say and understand."""

    def __init__(self, url: str, timeout: float, retries: int) -> None:
        self.url = url.rstrip("/")
        self._timeout, self._retries = timeout, retries

    def _search(self, subject: bytes | ImageIdQuery | EmbeddingQuery, params: SearchParams) -> _Request:
        fields = params.model_dump(mode="json", exclude_defaults=True)
        match subject:
            case ImageIdQuery(image_id):
                return _Request("POST", "/v1/search", {"json": {"image_id": image_id, **fields}})
            case EmbeddingQuery():
                return _Request("POST", "/v1/search", {"json": {**subject.model_dump(mode="json"), **fields}})
            case _:
                files = {"image": ("query", subject, "application/octet-stream")}
                return _Request("POST", "/v1/search", {"files": files, "data": _form(fields)})

    def _batch(self, scans: Sequence[bytes], params: SearchParams) -> _Request:
        fields = params.model_dump(mode="json", exclude_defaults=True)
        files = [("image", (f"query-{n}", scan, "application/octet-stream")) for n, scan in enumerate(scans)]
        return _Request("POST", "/v1/search:batch", {"files": files, "data": _form(fields)})

    def _answer(self, response: httpx.Response) -> Answer:
        try:
            return Answer.model_validate_json(response.content)
        except ValidationError as error:
            raise self._strange() from error

    def _line(self, line: str) -> BatchLine:
        try:
            return BatchLine.model_validate_json(line)
        except ValidationError as error:
            raise self._strange() from error

    def _strange(self) -> ServiceError:
        return ServiceError(f"{self.url} gave an answer that this client cannot read: use the versions that fit")

    def _unreachable(self, error: httpx.HTTPError) -> ServiceError:
        return ServiceError(f"{self.url} cannot be reached ({type(error).__name__}): is `mrcg serve` running there?")

    def _refused(self, request: _Request, response: httpx.Response) -> ServiceError:
        return ServiceError(f"{self.url}{request.path} answered {response.status_code}: {_detail(response)}")

    def _pause(self, tried: int, until: float, response: httpx.Response | None) -> float | None:
        """Seconds to wait before the call is tried again, None where it is not."""
        if tried >= self._retries or (response is not None and not _passes(response)):
            return None
        # Many clients that were refused together should not come back together.
        pause = random.uniform(0.5, 1.0) * min(LONGEST, FIRST * 2**tried)
        if response is not None and response.headers.get("Retry-After", "").isdigit():
            pause = max(pause, min(LONGEST, float(response.headers["Retry-After"])))
        return pause if time.monotonic() + pause < until else None


class Client(_Calls):
    """Asks a running service, and asks again where a call failed for reasons that pass.

    Args:
        url: where it listens, e.g. ``http://127.0.0.1:8000``.
        timeout: seconds for one call with all that is tried.
        retries: times that a call is tried again while the service is overloaded, changing or not reachable.

    Raises (every method):
        ServiceError: the service cannot be reached or refuses the call; the message says why.
    """

    def __init__(self, url: str, timeout: float = 60.0, retries: int = 3) -> None:
        super().__init__(url, timeout, retries)
        self._http = httpx.Client(base_url=self.url, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()

    def search(self, subject: bytes | ImageIdQuery | EmbeddingQuery, params: SearchParams = SearchParams()) -> Answer:
        """The k most similar images of the gallery, best first.

        Args:
            subject: content of an image file, an image of the gallery, or an embedding of the release's encoder.
            params: what is asked of it.
        """
        return self._answer(self._call(self._search(subject, params)))

    def search_many(self, scans: Sequence[bytes], params: SearchParams = SearchParams()) -> Iterator[BatchLine]:
        """Answers to many scans as they come; each says which scan it is for. One that fails ends no other."""
        request = self._batch(scans, params)
        try:
            with self._http.stream(request.method, request.path, **request.words) as response:
                if response.is_error:
                    response.read()
                    raise self._refused(request, response)
                for line in response.iter_lines():
                    yield self._line(line)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def preview(self, image_id: str) -> bytes:
        """A small picture (WebP) of an image of the gallery."""
        return self._call(_Request("GET", f"/v1/images/{image_id}/preview")).content

    def _call(self, request: _Request) -> httpx.Response:
        until = time.monotonic() + self._timeout
        for tried in range(self._retries + 1):
            response, failed = None, None
            try:
                response = self._http.request(request.method, request.path, **request.words)
            except httpx.HTTPError as error:
                failed = error
            if response is not None and response.is_success:
                return response
            pause = self._pause(tried, until, response)
            if pause is None:
                break
            time.sleep(pause)
        if response is None:
            assert failed is not None
            raise self._unreachable(failed) from failed
        raise self._refused(request, response)


class AsyncClient(_Calls):
    """The same for asyncio; see ``Client``."""

    def __init__(self, url: str, timeout: float = 60.0, retries: int = 3) -> None:
        super().__init__(url, timeout, retries)
        self._http = httpx.AsyncClient(base_url=self.url, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def search(
        self, subject: bytes | ImageIdQuery | EmbeddingQuery, params: SearchParams = SearchParams()
    ) -> Answer:
        """As ``Client.search``."""
        return self._answer(await self._call(self._search(subject, params)))

    async def search_many(
        self, scans: Sequence[bytes], params: SearchParams = SearchParams()
    ) -> AsyncIterator[BatchLine]:
        """As ``Client.search_many``."""
        request = self._batch(scans, params)
        try:
            async with self._http.stream(request.method, request.path, **request.words) as response:
                if response.is_error:
                    await response.aread()
                    raise self._refused(request, response)
                async for line in response.aiter_lines():
                    yield self._line(line)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    async def preview(self, image_id: str) -> bytes:
        """As ``Client.preview``."""
        return (await self._call(_Request("GET", f"/v1/images/{image_id}/preview"))).content

    async def _call(self, request: _Request) -> httpx.Response:
        until = time.monotonic() + self._timeout
        for tried in range(self._retries + 1):
            response, failed = None, None
            try:
                response = await self._http.request(request.method, request.path, **request.words)
            except httpx.HTTPError as error:
                failed = error
            if response is not None and response.is_success:
                return response
            pause = self._pause(tried, until, response)
            if pause is None:
                break
            await asyncio.sleep(pause)
        if response is None:
            assert failed is not None
            raise self._unreachable(failed) from failed
        raise self._refused(request, response)


def _passes(response: httpx.Response) -> bool:
    """Whether the same call may go well: also where the proxy says that the replica that had the call died."""
    ours = response.headers.get("content-type", "").startswith("application/problem+json")
    return response.status_code in AGAIN or (response.status_code == 500 and not ours)


def _form(fields: dict[str, Any]) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}


def _detail(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return response.text[:200]
    return str(body.get("detail", body)) if isinstance(body, dict) else str(body)
