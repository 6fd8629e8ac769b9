"""Request models. Field names and descriptions are part of the OpenAPI document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, field_validator

from mrcg.frozen import Frozen
from mrcg.text import normalised

GroupBy = Literal["none", "patient", "study"]


class Filters(Frozen):
    """Filters for hits: an image passes if each given field has one of the values. Unknown values never pass."""

    label: tuple[str, ...] = ()
    site: tuple[str, ...] = ()
    sequence: tuple[str, ...] = ()
    plane: tuple[str, ...] = ()
    years: tuple[int, int] | None = Field(None, description="first and last year of acquisition, both included")

    @field_validator("label", "site", "sequence", "plane", mode="after")
    @classmethod
    def _equal_forms(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(normalised, values))


@dataclass(frozen=True)
class ImageIdQuery:
    """Query by an image of the gallery; the image itself is never a hit."""

    image_id: str


class SearchParams(Frozen):
    """Parameters of a search, the same over HTTP and in one process."""

    k: int = Field(10, description="number of hits: 1 to the N of the release, 50 by default")
    rerank: bool = Field(
        True, description="score the hits, and order them as the release does; false orders them by distance"
    )
    group_by: GroupBy = Field("none", description="return only the nearest image of each patient or study")
    filters: Filters = Filters()
    exclude_patient: str | None = Field(None, description="pseudonym of a patient whose images are excluded")
    deadline_ms: int | None = Field(
        None, gt=0, description="milliseconds for the answer, at most the service's own deadline"
    )
    explain: bool = Field(False, description="add the query graph and what influenced the rank of each hit")


class EmbeddingQuery(Frozen):
    """Query by an embedding that the caller computed, with the fingerprint of the release's embeddings."""

    embedding: tuple[float, ...]
    encoder: str
