"""What the routes share: the gateway, the caller, the request id, and the documentation of errors."""

from __future__ import annotations

import re
import uuid
from typing import Annotated, Any

from fastapi import Depends, Request
from ray import serve

from mrcg_serve.auth import Peer
from mrcg_serve.gateway import Gateway
from mrcg_serve.problem_details import PROBLEM_JSON

#: Responses of a route in the OpenAPI document.
Responses = dict[int | str, dict[str, Any]]

_VALID_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_ERRORS = {
    403: "the caller is not authorised",
    404: "it does not exist, or this caller may not see it",
    409: "the request conflicts with the current release, or with another change of releases",
    413: "the upload or the image is too large",
    415: "the body is neither a form nor JSON",
    422: "the request is invalid, or the image cannot be used",
    503: "the service cannot answer now; retry after Retry-After seconds",
}


def errors(*statuses: int) -> Responses:
    """Return the documentation of a route's error responses: the given statuses, and 403, which any may send."""
    content = {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": _ERRORS[status], "content": content} for status in (403, *statuses)}


def current_gateway() -> Gateway:
    """Return the gateway of this replica."""
    gateway = serve.get_replica_context().servable_object
    assert isinstance(gateway, Gateway)
    return gateway


# Async although it awaits nothing: FastAPI would run a plain function in another thread for every request.
async def _current_gateway() -> Gateway:
    return current_gateway()


ThisGateway = Annotated[Gateway, Depends(_current_gateway)]


async def caller(request: Request, gateway: ThisGateway) -> str:
    """Return the caller's name; raise ForbiddenError if the caller is not authorised."""
    return gateway.authenticator.principal(Peer(request.client.host if request.client else "", request.headers))


Caller = Annotated[str, Depends(caller)]


async def request_id(request: Request) -> str:
    """Return the request's id for logs and the answer: ``x-request-id``, if it is safe to log, or a new id."""
    return valid_id_or_new(request.headers.get("x-request-id"))


def valid_id_or_new(supplied: str | None) -> str:
    """Return the id that the caller supplied if it is safe to log, or a new one."""
    return supplied if supplied and _VALID_ID.fullmatch(supplied) else uuid.uuid4().hex


RequestId = Annotated[str, Depends(request_id)]
