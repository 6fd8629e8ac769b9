"""The FastAPI application: all routes, health checks, metrics and the OpenAPI document."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.responses import Response

from mrcg.api.responses import BatchLine
from mrcg.version import __version__
from mrcg_serve.http import gallery_routes, release_routes, search_routes
from mrcg_serve.http.dependencies import ThisGateway, current_gateway, errors
from mrcg_serve.http.parsing import schemas_of_search
from mrcg_serve.observability.metrics import exposition
from mrcg_serve.problem_details import BodyLimit, Problem, install

api = FastAPI(
    title="MRCG",
    version=__version__,
    summary="Finds the MRI scans that are most similar to a given scan.",
    description="Every error is a problem+json document with a stable `code`.",
)
install(api)
api.add_middleware(BodyLimit, limit=lambda: current_gateway().max_upload_bytes)

operation = APIRouter(tags=["operation"])


class Health(BaseModel):
    """Status of the service."""

    status: str
    release: int


@operation.get("/healthz", summary="Alive")
async def healthz(gateway: ThisGateway) -> Health:
    """The gateway's process responds."""
    return Health(status="ok", release=gateway.release)


@operation.get("/readyz", summary="Ready", responses=errors(503))
async def readyz(gateway: ThisGateway) -> Health:
    """A test search has just passed through embedder and searcher."""
    await gateway.check()
    return Health(status="ready", release=gateway.release)


@operation.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics() -> Response:
    """Metrics of all replicas of all stages, in Prometheus text format; they may be a few seconds old."""
    return Response(await exposition(), media_type=CONTENT_TYPE_LATEST)


for router in (search_routes.router, gallery_routes.router, release_routes.router, operation):
    api.include_router(router)


def _openapi_document() -> dict[str, Any]:
    if api.openapi_schema is None:
        document = get_openapi(
            title=api.title,
            version=api.version,
            summary=api.summary,
            description=api.description,
            routes=api.routes,
        )
        document["components"]["schemas"] |= schemas_of_search() | _schemas_of(BatchLine) | _schemas_of(Problem)
        api.openapi_schema = document
    return api.openapi_schema


def _schemas_of(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
    definitions: dict[str, Any] = schema.pop("$defs", {})
    return {**definitions, model.__name__: schema}


api.openapi = _openapi_document  # type: ignore[method-assign]
