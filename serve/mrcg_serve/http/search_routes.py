"""Search routes: one scan, or a batch of scans."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import StreamingResponse

from mrcg.api.responses import Answer, BatchLine
from mrcg_serve.http.dependencies import Caller, RequestId, ThisGateway, errors
from mrcg_serve.http.parsing import body_of_batch, body_of_search, parse_batch, parse_search
from mrcg_serve.requests import SearchBatchRequest, SearchRequest

router = APIRouter(prefix="/v1", tags=["search"])
NDJSON = "application/x-ndjson"


@router.post(
    "/search",
    summary="Search by image",
    responses=errors(404, 409, 413, 415, 422, 503),
    openapi_extra={"requestBody": body_of_search()},
)
async def search(
    gateway: ThisGateway,
    principal: Caller,
    request_id: RequestId,
    search_request: Annotated[SearchRequest, Depends(parse_search)],
) -> Answer:
    """The k most similar images of the gallery, best first, and the release that produced the answer.

    Send a scan as a form, or JSON with the id of a gallery image or with an embedding. An embedding has to be made by
    the release's encoder.
    """
    return await gateway.search(principal, search_request.subject, search_request.params, request_id)


@router.post(
    "/search:batch",
    summary="Search by several images",
    responses={
        200: {
            "description": "one line of JSON per scan, in the order in which they finish",
            "content": {NDJSON: {"schema": {"$ref": "#/components/schemas/BatchLine"}}},
        },
        **errors(413, 415, 422),
    },
    openapi_extra={"requestBody": body_of_batch()},
    response_class=StreamingResponse,
)
async def search_batch(
    gateway: ThisGateway, principal: Caller, batch: Annotated[SearchBatchRequest, Depends(parse_batch)]
) -> StreamingResponse:
    """Search for each of several scans. If one fails, its line carries the problem; the others continue."""
    return StreamingResponse(_lines(gateway.search_many(principal, batch.scans, batch.params)), media_type=NDJSON)


async def _lines(lines: AsyncIterator[BatchLine]) -> AsyncIterator[str]:
    async for line in lines:
        yield line.model_dump_json() + "\n"
