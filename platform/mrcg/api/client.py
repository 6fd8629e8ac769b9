"""HTTP clients of the service: a blocking one and one for asyncio."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import ValidationError
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    retry_if_result,
    stop_after_attempt,
    stop_before_delay,
)

from mrcg.api.requests import EmbeddingQuery, ImageIdQuery, SearchParams
from mrcg.api.responses import Answer, BatchLine
from mrcg.errors import MrcgError, ServiceError, from_code
from mrcg.proxies import SCHEMES, stays_inside

#: Status codes after which a retry may succeed: the service is overloaded or changing releases, or a replica died.
RETRY_STATUS = {502, 503, 504}
#: Pause before the first retry and longest pause, in seconds.
FIRST_PAUSE, MAX_PAUSE = 0.2, 5.0


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    options: dict[str, Any] = field(default_factory=dict)


class _BaseClient:
    """Requests, errors and retries that both clients share."""

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
            raise self._unreadable() from error

    def _line(self, line: str) -> BatchLine:
        try:
            return BatchLine.model_validate_json(line)
        except ValidationError as error:
            raise self._unreadable() from error

    def _unreadable(self) -> ServiceError:
        return ServiceError(
            f"{self.url} sent an answer that this client cannot read: use the client of the same version as the service"
        )

    def _unreachable(self, error: httpx.HTTPError) -> ServiceError:
        return ServiceError(f"{self.url} cannot be reached ({type(error).__name__}): is `mrcg serve` running there?")

    def _error(self, request: _Request, response: httpx.Response) -> MrcgError:
        """Return the error that the service raised, or a ``ServiceError`` if the response has no code of MRCG."""
        code, detail = _problem(response)
        error = None if code is None or code == MrcgError.code else from_code(code, detail)
        return error or ServiceError(f"{self.url}{request.path} answered {response.status_code}: {detail}")

    def _policy(self) -> dict[str, Any]:
        """Return the arguments of tenacity's ``Retrying`` and ``AsyncRetrying``: when a request is made again."""
        return {
            "retry": retry_if_exception_type(httpx.HTTPError) | retry_if_result(_may_succeed_later),
            "stop": stop_after_attempt(self._retries + 1) | stop_before_delay(self._timeout),
            "wait": _pause,
            # What the last request gave: its response, or its error.
            "retry_error_callback": lambda state: state.outcome.result() if state.outcome else None,
        }

    def _checked(self, request: _Request, response: httpx.Response) -> httpx.Response:
        if not response.is_success:
            raise self._error(request, response)
        return response


class Client(_BaseClient):
    """Client of a running service. Calls that fail for a temporary reason are retried.

    Args:
        url: of the service, e.g. ``http://127.0.0.1:8000``.
        timeout: of one HTTP request, in seconds; no retry starts later than this after the start of a call.
        retries: maximum number of retries while the service is overloaded, changing releases or unreachable.

    A proxy of the environment is used only for a service outside the private network (`docs/serving.md#environment`).

    Raises (every method):
        ServiceError: the service cannot be reached, or its answer cannot be read.
        MrcgError: the service rejected the call; the same error that ``LocalPipeline`` raises.
    """

    def __init__(self, url: str, timeout: float = 60.0, retries: int = 3) -> None:
        super().__init__(url, timeout, retries)
        direct = dict.fromkeys(SCHEMES, httpx.HTTPTransport()) if stays_inside(self.url) else None
        self._http = httpx.Client(base_url=self.url, timeout=timeout, mounts=direct)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()

    def search(self, subject: bytes | ImageIdQuery | EmbeddingQuery, params: SearchParams = SearchParams()) -> Answer:
        """Return the k most similar images of the gallery, best first.

        Args:
            subject: content of an image file, an image of the gallery, or an embedding of the release's encoder.
            params: k, filters, grouping, deadline and other options.
        """
        return self._answer(self._call(self._search(subject, params)))

    def search_many(self, scans: Sequence[bytes], params: SearchParams = SearchParams()) -> Iterator[BatchLine]:
        """Yield an answer or a problem for each scan as it arrives; ``index`` is the position of the scan in ``scans``.

        The call is not retried.
        """
        request = self._batch(scans, params)
        try:
            with self._http.stream(request.method, request.path, **request.options) as response:
                if response.is_error:
                    response.read()
                    raise self._error(request, response)
                for line in response.iter_lines():
                    yield self._line(line)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def preview(self, image_id: str) -> bytes:
        """Return a small preview (WebP) of an image of the gallery."""
        return self._call(_Request("GET", f"/v1/images/{image_id}/preview")).content

    def _call(self, request: _Request) -> httpx.Response:
        send = partial(self._http.request, request.method, request.path, **request.options)
        try:
            response: httpx.Response = Retrying(**self._policy())(send)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        return self._checked(request, response)


class AsyncClient(_BaseClient):
    """Client for asyncio, with the same arguments and errors as ``Client``."""

    def __init__(self, url: str, timeout: float = 60.0, retries: int = 3) -> None:
        super().__init__(url, timeout, retries)
        direct = dict.fromkeys(SCHEMES, httpx.AsyncHTTPTransport()) if stays_inside(self.url) else None
        self._http = httpx.AsyncClient(base_url=self.url, timeout=timeout, mounts=direct)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def search(
        self, subject: bytes | ImageIdQuery | EmbeddingQuery, params: SearchParams = SearchParams()
    ) -> Answer:
        """See ``Client.search``."""
        return self._answer(await self._call(self._search(subject, params)))

    async def search_many(
        self, scans: Sequence[bytes], params: SearchParams = SearchParams()
    ) -> AsyncIterator[BatchLine]:
        """See ``Client.search_many``."""
        request = self._batch(scans, params)
        try:
            async with self._http.stream(request.method, request.path, **request.options) as response:
                if response.is_error:
                    await response.aread()
                    raise self._error(request, response)
                async for line in response.aiter_lines():
                    yield self._line(line)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    async def preview(self, image_id: str) -> bytes:
        """See ``Client.preview``."""
        return (await self._call(_Request("GET", f"/v1/images/{image_id}/preview"))).content

    async def _call(self, request: _Request) -> httpx.Response:
        send = partial(self._http.request, request.method, request.path, **request.options)
        try:
            response: httpx.Response = await AsyncRetrying(**self._policy())(send)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        return self._checked(request, response)


def _pause(state: RetryCallState) -> float:
    """Return the seconds before the next try: longer ones each time, and what the service asks for."""
    # Random, so that clients that failed at the same time do not retry at the same time.
    pause = random.uniform(0.5, 1.0) * min(MAX_PAUSE, FIRST_PAUSE * 2.0 ** (state.attempt_number - 1))
    if state.outcome is None or state.outcome.failed:
        return pause
    asked: str = state.outcome.result().headers.get("Retry-After", "")
    return max(pause, min(MAX_PAUSE, float(asked))) if asked.isdigit() else pause


def _may_succeed_later(response: httpx.Response) -> bool:
    """Return whether a retry may succeed. A 500 from the proxy, not from the service, means that a replica died."""
    from_service = response.headers.get("content-type", "").startswith("application/problem+json")
    return response.status_code in RETRY_STATUS or (response.status_code == 500 and not from_service)


def _form(fields: dict[str, Any]) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}


def _problem(response: httpx.Response) -> tuple[str | None, str]:
    """Return code and detail of a problem+json (RFC 9457); None and the text if the response is something else."""
    try:
        body = response.json()
    except ValueError:
        return None, response.text[:200]
    if not isinstance(body, dict):
        return None, str(body)
    code = body.get("code")
    return (code if isinstance(code, str) else None), str(body.get("detail", body))
