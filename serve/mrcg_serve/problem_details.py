"""Errors as problem+json (RFC 9457) with a stable ``code``, and the bound on a request's body."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
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
    LostRaceError,
    MrcgError,
    NotFoundError,
    ReleaseError,
    UsageError,
)
from mrcg.retrieval.search import StageUnavailableError

log = logging.getLogger(__name__)

PROBLEM_JSON = "application/problem+json"
RETRY_AFTER_S = 1
#: Room for the multipart envelope around an upload.
ENVELOPE_BYTES = 64 * 1024
#: A client that is still sending may not read an answer: take this much more before answering.
DRAIN_BYTES = 256 * 2**20


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str

    def response(self) -> Response:
        """The answer that carries it."""
        headers = {"Retry-After": str(RETRY_AFTER_S)} if self.status == 503 else None
        return Response(self.model_dump_json(), self.status, headers, PROBLEM_JSON)


def problem(status: int, code: str, detail: str) -> Problem:
    """A problem whose title is its code in words."""
    return Problem(title=code.replace("_", " "), status=status, code=code, detail=detail)


def problem_of(error: MrcgError) -> Problem:
    """What a client is told of one of our errors."""
    if isinstance(error, ImageError):
        status = 413 if error.reason in {"too_many_bytes", "too_many_pixels"} else 422
        return problem(status, f"image_{error.reason}", str(error))
    if isinstance(error, StageUnavailableError):
        return problem(503, "unavailable", str(error))
    if isinstance(error, NotFoundError):
        return problem(404, "not_found", str(error))
    if isinstance(error, ForbiddenError):
        return problem(403, "forbidden", str(error))
    if isinstance(error, LostRaceError):
        return problem(409, "lost_race", str(error))
    if isinstance(error, ReleaseError):
        return problem(409, "not_releasable", str(error))
    if isinstance(error, FingerprintError):
        return problem(409, "other_encoder", str(error))
    if isinstance(error, UsageError):
        return problem(422, "invalid_request", str(error))
    return problem(500, "internal", "the service failed; its log says why")


def install(api: FastAPI) -> None:
    """Answer every error of ours, and the framework's own, as a problem."""
    api.add_exception_handler(MrcgError, _own)
    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(HTTPException, _http)
    api.add_exception_handler(Exception, _unexpected)


async def _own(request: Request, error: Exception) -> Response:
    assert isinstance(error, MrcgError)
    told = problem_of(error)
    if told.status == 500:
        log.error("request failed", exc_info=error)
    return told.response()


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return invalid(first["loc"][1:], first["msg"]).response()


def invalid(place: Sequence[int | str], said: str) -> Problem:
    """What is told of a field that is missing or wrong. Its value stays out: it may be the upload."""
    return problem(422, "invalid_request", f"{'.'.join(str(part) for part in place) or 'request'}: {said}")


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # the framework's own word for a form that cannot be read
        return problem(422, "invalid_request", str(error.detail)).response()
    return problem(error.status_code, "http_error", str(error.detail)).response()


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("request failed", exc_info=error)
    return problem(500, "internal", "the service failed; its log says why").response()


class BodyLimit:
    """Refuses bodies over the limit while they come in, whether or not they state a length."""

    def __init__(self, app: ASGIApp, limit: Callable[[], int]) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit()
        body = bytearray()
        seen, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            chunk: bytes = message.get("body", b"")
            seen += len(chunk)
            more = message.get("more_body", False)
            if seen <= limit + ENVELOPE_BYTES:
                body += chunk
            elif seen > DRAIN_BYTES:
                break
        if seen > limit + ENVELOPE_BYTES:
            refusal = problem(413, "too_many_bytes", f"the upload is larger than the limit of {limit:,} bytes")
            await refusal.response()(scope, receive, send)
            return
        await self._app(scope, _replay(bytes(body), receive), send)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receive that gives the body that was read already, then whatever comes."""
    waiting: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
