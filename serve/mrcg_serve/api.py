"""The routes of the gateway. They are functions: the gateway itself comes in as a dependency."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from ray import serve
from starlette.responses import Response

from mrcg import __version__
from mrcg.answers import Answer
from mrcg_serve.gateway import Gateway
from mrcg_serve.problems import BodyLimit, Problem, install
from mrcg_serve.questions import Question, body_of_search, question, schemas_of_search

api = FastAPI(
    title="MRCG",
    version=__version__,
    summary="Finds the MRI scans most similar to one scan.",
    description="Every error is problem+json with a stable `code`.",
)
install(api)


class Health(BaseModel):
    """State of the service."""

    status: str
    release: int


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        403: "the caller is not allowed here",
        413: "the upload or the image is too large",
        422: "the request or the image cannot be used",
        503: "no stage can answer now; try again after Retry-After seconds",
    }.items()
}


SEARCH_ERRORS = ERRORS | {
    404: {"model": Problem, "description": "no such image"},
    409: {"model": Problem, "description": "the embedding is of another encoder"},
    415: {"model": Problem, "description": "neither a form nor JSON"},
}


def current_gateway() -> Gateway:
    """The gateway of this replica."""
    gateway = serve.get_replica_context().servable_object
    assert isinstance(gateway, Gateway)
    return gateway


api.add_middleware(BodyLimit, limit=lambda: current_gateway().max_upload_bytes)


def caller(request: Request, gateway: Annotated[Gateway, Depends(current_gateway)]) -> str:
    """Who calls; refuses who may not."""
    return gateway.authenticator.principal(request)


ThisGateway = Annotated[Gateway, Depends(current_gateway)]
Caller = Annotated[str, Depends(caller)]


@api.post(
    "/v1/search",
    summary="Search by image",
    responses=SEARCH_ERRORS,
    openapi_extra={"requestBody": body_of_search()},
    tags=["search"],
)
async def search(gateway: ThisGateway, principal: Caller, asked: Annotated[Question, Depends(question)]) -> Answer:
    """The k most similar images of the gallery, best first, with the release that answered.

    A form brings a scan; JSON names an image of the gallery, or brings an embedding that the caller's own encoder made,
    which has to be the release's.
    """
    return await gateway.search(principal, asked.subject, asked.wanted)


@api.get(
    "/v1/images/{image_id}/preview",
    summary="A small PNG of a gallery image",
    responses={
        200: {"content": {"image/png": {}}},
        403: ERRORS[403],
        404: {"model": Problem, "description": "no such image"},
    },
    response_class=Response,
    tags=["images"],
)
async def preview(gateway: ThisGateway, principal: Caller, image_id: str) -> Response:
    """At most 256 pixels on the longer side."""
    return Response(await gateway.preview(principal, image_id), media_type="image/png")


@api.get("/healthz", summary="Alive", tags=["operation"])
async def healthz(gateway: ThisGateway) -> Health:
    """The gateway's process answers."""
    return Health(status="ok", release=gateway.rules.release)


@api.get("/readyz", summary="Ready", responses={503: ERRORS[503]}, tags=["operation"])
async def readyz(gateway: ThisGateway) -> Health:
    """A search just went through embedder and searcher."""
    await gateway.check()
    return Health(status="ready", release=gateway.rules.release)


@api.get("/metrics", summary="Prometheus metrics", response_class=Response, tags=["operation"])
async def metrics(gateway: ThisGateway) -> Response:
    """Counters of this gateway in Prometheus' text format."""
    return Response(gateway.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _document() -> dict[str, Any]:
    if api.openapi_schema is None:
        document = get_openapi(
            title=api.title,
            version=api.version,
            summary=api.summary,
            description=api.description,
            routes=api.routes,
        )
        document["components"]["schemas"] |= schemas_of_search()
        api.openapi_schema = document
    return api.openapi_schema


api.openapi = _document  # type: ignore[method-assign]
