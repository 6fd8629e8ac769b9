"""What every route of the gateway shares: the gateway itself, who calls, and how problems are documented."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request
from ray import serve

from mrcg_serve.gateway import Gateway
from mrcg_serve.problems import Problem

#: An OpenAPI document's responses.
Responses = dict[int | str, dict[str, Any]]

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
    return {status: {"model": Problem, "description": _ERRORS[status]} for status in (403, *statuses)}


def current_gateway() -> Gateway:
    """The gateway of this replica."""
    gateway = serve.get_replica_context().servable_object
    assert isinstance(gateway, Gateway)
    return gateway


ThisGateway = Annotated[Gateway, Depends(current_gateway)]


def caller(request: Request, gateway: ThisGateway) -> str:
    """Who calls; refuses who may not."""
    return gateway.authenticator.principal(request)


Caller = Annotated[str, Depends(caller)]
