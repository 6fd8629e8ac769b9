"""Routes that list releases and change the current one. The service then follows by itself."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from mrcg.frozen import Frozen
from mrcg.releases.release import Gate, Promotion, Release, promote, read_release, release_numbers, rollback
from mrcg_serve.http.dependencies import Caller, ThisGateway, errors

router = APIRouter(prefix="/v1/releases", tags=["releases"])


class Releases(BaseModel):
    """All releases, the current one, and the one that this gateway pins for new requests."""

    current: int
    answering: int
    releases: list[Release]


class Limits(Frozen):
    """How much worse than the current release a new one may be."""

    map_drop: float = Field(0.01, ge=0, le=1, description="largest drop in MAP")
    recall_drop: float = Field(0.02, ge=0, le=1, description="largest drop in the index's recall")
    known_drop: float = Field(
        0.02, ge=0, le=1, description="largest drop in the share of changed gallery scans that find themselves first"
    )


@router.get("", summary="All releases", responses=errors())
async def releases(gateway: ThisGateway, principal: Caller) -> Releases:
    """All releases by ascending number; the highest is the current one."""
    store = gateway.store

    def read() -> list[Release]:
        return [read_release(store, number) for number in release_numbers(store)]

    all_releases = await asyncio.to_thread(read)
    return Releases(current=all_releases[-1].number, answering=gateway.release, releases=all_releases)


@router.get("/current", summary="The current release", responses=errors())
async def current(gateway: ThisGateway, principal: Caller) -> Release:
    """The release that was promoted last; the service uses it as soon as all replicas have loaded it."""
    return await asyncio.to_thread(read_release, gateway.store)


@router.post("/{report}:promote", summary="Promote", responses=errors(404, 409, 422))
async def promote_report(
    gateway: ThisGateway,
    principal: Caller,
    report: Annotated[str, Path(pattern="^[0-9a-f]+$", max_length=64, description="version of the report")],
    limits: Limits = Limits(),
) -> Promotion:
    """Make the versions that a report measured the current release, unless they are too much worse than it."""
    gate = Gate(map_drop=limits.map_drop, recall_drop=limits.recall_drop, known_drop=limits.known_drop)
    return await asyncio.to_thread(promote, gateway.store, report, gate)


@router.post("/{number}:rollback", summary="Roll back", responses=errors(404, 409, 422))
async def roll_back(
    gateway: ThisGateway, principal: Caller, number: Annotated[int, Path(ge=1, description="number of the release")]
) -> Release:
    """Make an earlier release current again, as a new release with a new number."""
    return await asyncio.to_thread(rollback, gateway.store, number)
