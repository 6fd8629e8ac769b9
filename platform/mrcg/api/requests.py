"""Requests, as they go over the wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

GroupBy = Literal["none", "patient", "study"]


class Filters(BaseModel):
    """Which images may answer: those that have one of the values of each field that is given. Unknown never passes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: tuple[str, ...] = ()
    site: tuple[str, ...] = ()
    sequence: tuple[str, ...] = ()
    plane: tuple[str, ...] = ()
    years: tuple[int, int] | None = Field(None, description="first and last year of acquisition, both included")


@dataclass(frozen=True)
class ImageIdQuery:
    """An image of the gallery; it never answers for itself."""

    image_id: str


class SearchParams(BaseModel):
    """What is asked of a search: the same over HTTP, from the client and in this process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    k: int = Field(10, description="hits: 1 to the release's N, 50 by default")
    rerank: bool = Field(True, description="false answers in the index's order")
    group_by: GroupBy = Field("none", description="one image of each patient or study")
    filters: Filters = Filters()
    exclude_patient: str | None = Field(None, description="pseudonym of a patient whose images are left out")
    deadline_ms: int | None = Field(None, gt=0, description="time for the answer, at most the service's own")
    explain: bool = Field(False, description="adds the query graph and what moved the hits")


class EmbeddingQuery(BaseModel):
    """An embedding that the caller made, and the fingerprint of the encoder that made it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedding: tuple[float, ...]
    encoder: str
