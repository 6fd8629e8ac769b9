"""Routes that show images of the gallery, and files that ingestion refused."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.responses import Response

from mrcg.api.responses import ImageFacts, QuarantinedFile
from mrcg_serve.http.dependencies import Caller, ThisGateway, errors

router = APIRouter(prefix="/v1")
#: Refused files on one page, at most.
PAGE = 1000


class Quarantine(BaseModel):
    """One page of the refused files, and their total number."""

    total: int
    refused: list[QuarantinedFile]


@router.get("/images/{image_id}", summary="Metadata of a gallery image", responses=errors(404, 422), tags=["images"])
async def image(gateway: ThisGateway, principal: Caller, image_id: str) -> ImageFacts:
    """Its label, where and how it was acquired, and the path of its preview."""
    return await gateway.image(principal, image_id)


@router.get(
    "/images/{image_id}/preview",
    summary="Preview of a gallery image",
    responses={200: {"content": {"image/webp": {}}}, **errors(404, 422)},
    response_class=Response,
    tags=["images"],
)
async def preview(gateway: ThisGateway, principal: Caller, image_id: str) -> Response:
    """WebP, at most 256 pixels on the longer side."""
    webp = await gateway.preview(principal, image_id)
    # A scan is private: neither caches nor proxies may store it.
    return Response(webp, media_type="image/webp", headers={"Cache-Control": "private, no-store"})


@router.get("/quarantine", summary="Files that were refused", responses=errors(422), tags=["operation"])
async def quarantine(
    gateway: ThisGateway,
    principal: Caller,
    first: Annotated[int, Query(ge=0)] = 0,
    count: Annotated[int, Query(ge=1, le=PAGE)] = 100,
) -> Quarantine:
    """Files of the source that could not be used, with the reason, for the corpus that is searched."""
    total, files = await asyncio.to_thread(gateway.quarantine, first, count)
    return Quarantine(total=total, refused=files)
