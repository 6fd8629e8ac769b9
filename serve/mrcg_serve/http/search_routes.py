"""Routes that search."""

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
    gateway: ThisGateway, principal: Caller, named: RequestId, asked: Annotated[SearchRequest, Depends(parse_search)]
) -> Answer:
    """The k most similar images of the gallery, best first, with the release that answered.

    A form brings a scan; JSON names an image of the gallery, or brings an embedding that the caller's own encoder made,
    which has to be the release's.
    """
    return await gateway.search(principal, asked.subject, asked.params, named)


@router.post(
    "/search:batch",
    summary="Search by many images",
    responses={
        200: {
            "description": "a line of JSON for each scan, as they are answered",
            "content": {NDJSON: {"schema": {"$ref": "#/components/schemas/BatchLine"}}},
        },
        **errors(413, 415, 422),
    },
    openapi_extra={"requestBody": body_of_batch()},
    response_class=StreamingResponse,
)
async def search_batch(
    gateway: ThisGateway, principal: Caller, asked: Annotated[SearchBatchRequest, Depends(parse_batch)]
) -> StreamingResponse:
    """The same for each of many scans. One that cannot be answered has its problem on its line, and ends no other."""
    return StreamingResponse(_lines(gateway.search_many(principal, asked.scans, asked.params)), media_type=NDJSON)


async def _lines(answered: AsyncIterator[BatchLine]) -> AsyncIterator[str]:
    async for line in answered:
        yield line.model_dump_json() + "\n"
