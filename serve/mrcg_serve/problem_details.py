"""Errors as problem+json (RFC 9457) with a stable ``code``, and the limit on the size of a request body."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mrcg.errors import (
    FingerprintError,
    ForbiddenError,
    ImageError,
    MissingExtraError,
    MrcgError,
    NotFoundError,
    ReleaseError,
    ReleaseNotLoadedError,
    StageUnavailableError,
    UsageError,
)

log = logging.getLogger(__name__)

PROBLEM_JSON = "application/problem+json"
RETRY_AFTER_S = 1
#: Allowance for the multipart envelope around an upload.
ENVELOPE_BYTES = 64 * 1024
#: A client that is still sending may not read a response: read on, up to this many bytes in all, before responding.
DRAIN_BYTES = 256 * 2**20


#: HTTP status of an error: that of the nearest base class in this table.
_STATUS: Mapping[type, int] = {
    MrcgError: 500,
    UsageError: 422,
    MissingExtraError: 500,
    FingerprintError: 409,
    ImageError: 422,
    NotFoundError: 404,
    ReleaseError: 409,
    ForbiddenError: 403,
    StageUnavailableError: 503,
    ReleaseNotLoadedError: 503,
}


class Problem(BaseModel):
    """An error document (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str

    def response(self) -> Response:
        """Return the HTTP response for this problem; a 503 also has Retry-After."""
        headers = {"Retry-After": str(RETRY_AFTER_S)} if self.status == 503 else None
        return Response(self.model_dump_json(), self.status, headers, PROBLEM_JSON)


def problem(status: int, code: str, detail: str) -> Problem:
    """Return a problem whose title is its code with spaces."""
    return Problem(title=code.replace("_", " "), status=status, code=code, detail=detail)


def problem_of(error: MrcgError) -> Problem:
    """Return the problem of a library error, with its code and text, from which a client can raise it again."""
    if isinstance(error, ImageError) and error.reason in {"too_many_bytes", "too_many_pixels"}:
        return problem(413, error.code, str(error))
    status = next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
    return problem(status, error.code, str(error))


def install(api: FastAPI) -> None:
    """Register handlers that turn MRCG errors, framework errors and unexpected errors into problems."""
    api.add_exception_handler(MrcgError, _mrcg_error)
    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(HTTPException, _http)
    api.add_exception_handler(Exception, _unexpected)


async def _mrcg_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, MrcgError)
    details = problem_of(error)
    if details.status == 500:
        log.error("request failed", exc_info=error)
    return details.response()


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return invalid(first["loc"][1:], first["msg"]).response()


def invalid(location: Sequence[int | str], message: str) -> Problem:
    """Return the problem of a field that is missing or wrong. Its value is left out: it may be the upload."""
    return problem(422, "invalid_request", f"{'.'.join(str(part) for part in location) or 'request'}: {message}")


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # the framework's status for a form that cannot be read
        return problem(422, "invalid_request", str(error.detail)).response()
    return problem(error.status_code, "http_error", str(error.detail)).response()


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("request failed", exc_info=error)
    return problem(500, "internal", "the service failed; see its log for the reason").response()


class BodyLimit:
    """ASGI middleware that refuses bodies over the limit, with or without a Content-Length header.

    Args:
        app: the application to protect.
        limit: returns the limit of an upload in bytes; it is called once per request.
    """

    def __init__(self, app: ASGIApp, limit: Callable[[], int]) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body up to the limit, then call the application with it, or respond with 413."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit()
        body = bytearray()
        received, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            chunk: bytes = message.get("body", b"")
            received += len(chunk)
            more = message.get("more_body", False)
            if received <= limit + ENVELOPE_BYTES:
                body += chunk
            elif received > DRAIN_BYTES:
                break
        if received > limit + ENVELOPE_BYTES:
            refusal = problem(413, "too_many_bytes", f"the upload is larger than the limit of {limit:,} bytes")
            await refusal.response()(scope, receive, send)
            return
        await self._app(scope, _replay(bytes(body), receive), send)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that yields the body that was already read, then passes on later messages."""
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
