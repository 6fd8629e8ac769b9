"""The application behind HTTP: its routes put together, and what tells whether it is well."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.responses import Response

from mrcg import __version__
from mrcg.api.responses import BatchLine
from mrcg_serve.http import gallery_routes, release_routes, search_routes
from mrcg_serve.http.dependencies import ThisGateway, current_gateway, errors
from mrcg_serve.http.parsing import schemas_of_search
from mrcg_serve.observability.metrics import exposition
from mrcg_serve.problem_details import BodyLimit, Problem, install

api = FastAPI(
    title="MRCG",
    version=__version__,
    summary="Finds the MRI scans most similar to one scan.",
    description="Every error is problem+json with a stable `code`.",
)
install(api)
api.add_middleware(BodyLimit, limit=lambda: current_gateway().max_upload_bytes)

operation = APIRouter(tags=["operation"])


class Health(BaseModel):
    """State of the service."""

    status: str
    release: int


@operation.get("/healthz", summary="Alive")
async def healthz(gateway: ThisGateway) -> Health:
    """The gateway's process answers."""
    return Health(status="ok", release=gateway.release)


@operation.get("/readyz", summary="Ready", responses=errors(503))
async def readyz(gateway: ThisGateway) -> Health:
    """A search just went through embedder and searcher."""
    await gateway.check()
    return Health(status="ready", release=gateway.release)


@operation.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics() -> Response:
    """What all replicas of all stages count, in Prometheus' text format; up to some seconds old."""
    return Response(await exposition(), media_type=CONTENT_TYPE_LATEST)


for router in (search_routes.router, gallery_routes.router, release_routes.router, operation):
    api.include_router(router)


def _document() -> dict[str, Any]:
    if api.openapi_schema is None:
        document = get_openapi(
            title=api.title,
            version=api.version,
            summary=api.summary,
            description=api.description,
            routes=api.routes,
        )
        document["components"]["schemas"] |= schemas_of_search() | _with_its_parts(BatchLine) | _with_its_parts(Problem)
        api.openapi_schema = document
    return api.openapi_schema


def _with_its_parts(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
    parts: dict[str, Any] = schema.pop("$defs", {})
    return {**parts, model.__name__: schema}


api.openapi = _document  # type: ignore[method-assign]
