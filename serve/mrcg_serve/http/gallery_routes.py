"""Routes that show what the gallery has, and what it refused."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.responses import Response

from mrcg.api.responses import ImageFacts, QuarantinedFile
from mrcg_serve.http.dependencies import Caller, ThisGateway, errors

router = APIRouter(prefix="/v1")
#: QuarantinedFile files that are shown on one page, at most.
PAGE = 1000


class Quarantine(BaseModel):
    """One page of what was refused."""

    total: int
    refused: list[QuarantinedFile]


@router.get(
    "/images/{image_id}", summary="What is known of a gallery image", responses=errors(404, 422), tags=["images"]
)
async def image(gateway: ThisGateway, principal: Caller, image_id: str) -> ImageFacts:
    """Its label, where and how it was taken, and where its picture is."""
    return await gateway.image(principal, image_id)


@router.get(
    "/images/{image_id}/preview",
    summary="A small picture of a gallery image",
    responses={200: {"content": {"image/webp": {}}}, **errors(404, 422)},
    response_class=Response,
    tags=["images"],
)
async def preview(gateway: ThisGateway, principal: Caller, image_id: str) -> Response:
    """WebP, at most 256 pixels on the longer side."""
    picture = await gateway.preview(principal, image_id)
    # Nobody on the way keeps a private scan.
    return Response(picture, media_type="image/webp", headers={"Cache-Control": "private, no-store"})


@router.get("/quarantine", summary="Files that were refused", responses=errors(422), tags=["operation"])
async def quarantine(
    gateway: ThisGateway,
    principal: Caller,
    first: Annotated[int, Query(ge=0)] = 0,
    count: Annotated[int, Query(ge=1, le=PAGE)] = 100,
) -> Quarantine:
    """Files of the source that could not be used, and why, of the corpus that is searched."""
    total, refused = await asyncio.to_thread(gateway.quarantine, first, count)
    return Quarantine(total=total, refused=refused)
