"""What every route of the gateway shares: the gateway itself, who calls, and how problems are documented."""

from __future__ import annotations

import re
import uuid
from typing import Annotated, Any

from fastapi import Depends, Request
from ray import serve

from mrcg_serve.auth import Peer
from mrcg_serve.gateway import Gateway
from mrcg_serve.problem_details import PROBLEM_JSON

#: An OpenAPI document's responses.
Responses = dict[int | str, dict[str, Any]]

_PLAIN = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_ERRORS = {
    403: "the caller is not allowed here",
    404: "there is no such thing, or not for this caller",
    409: "it does not fit what is there now",
    413: "the upload or the image is too large",
    415: "neither a form nor JSON",
    422: "the request or the image cannot be used",
    503: "no stage can answer now; try again after Retry-After seconds",
}


def errors(*statuses: int) -> Responses:
    """How a route documents its problems; every one may answer 403."""
    content = {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": _ERRORS[status], "content": content} for status in (403, *statuses)}


def current_gateway() -> Gateway:
    """The gateway of this replica."""
    gateway = serve.get_replica_context().servable_object
    assert isinstance(gateway, Gateway)
    return gateway


# What does not wait is async, too: FastAPI would call it in another thread, for every request.
async def _current_gateway() -> Gateway:
    return current_gateway()


ThisGateway = Annotated[Gateway, Depends(_current_gateway)]


async def caller(request: Request, gateway: ThisGateway) -> str:
    """Who calls; refuses who may not."""
    return gateway.authenticator.principal(Peer(request.client.host if request.client else "", request.headers))


Caller = Annotated[str, Depends(caller)]


async def request_id(request: Request) -> str:
    """What the request is called in logs and in its answer: as Serve calls it, where that is a plain name."""
    return plain_id(request.headers.get("x-request-id"))


def plain_id(named: str | None) -> str:
    """A caller's own name of a request, or a new one: what could be more than a name stays out of logs."""
    return named if named and _PLAIN.fullmatch(named) else uuid.uuid4().hex


RequestId = Annotated[str, Depends(request_id)]
