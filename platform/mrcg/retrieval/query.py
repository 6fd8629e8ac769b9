"""Queries: what to search for, and which images of the gallery may be hits."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mrcg.api.requests import Filters, GroupBy, ImageIdQuery, SearchParams
from mrcg.imaging.slices import Grey
from mrcg.index.metadata import Where

Embedding = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Scope:
    """Which of the images that a caller may find can be hits of one query, and whether hits are grouped.

    Attributes:
        where: the filter.
        exclude_patient: pseudonym of a patient whose images are left out.
        exclude_image: id of an image that is left out: the query itself if it is in the gallery.
        group_by: return only the nearest image of each patient or study, or all images (none).
    """

    where: Where = field(default_factory=Where)
    exclude_patient: str | None = None
    exclude_image: str | None = None
    group_by: GroupBy = "none"


@dataclass(frozen=True)
class PixelQuery:
    """(s, s) grey levels of a scan, to be embedded."""

    pixels_ss: Grey


@dataclass(frozen=True)
class VectorQuery:
    """(d,) embedding that the caller computed."""

    embedding_d: Embedding


def where_of(filters: Filters) -> Where:
    """Return the index filter for the filters of a request."""
    return Where(
        site=filters.site, label=filters.label, sequence=filters.sequence, plane=filters.plane, years=filters.years
    )


Subject = PixelQuery | VectorQuery | ImageIdQuery


@dataclass(frozen=True)
class Query:
    """One search: what to search for, and how.

    Attributes:
        subject: a scan, an embedding, or an image of the gallery.
        k: maximum number of hits.
        rerank: order the hits by the reranker; otherwise by distance.
        explain: explain the order of the reranked hits.
        scope: which images may be hits.
    """

    subject: Subject
    k: int
    rerank: bool = True
    explain: bool = False
    scope: Scope = field(default_factory=Scope)

    @classmethod
    def of(cls, subject: Subject, params: SearchParams) -> Query:
        """Return the query for the params of a request; an image of the gallery is never its own hit."""
        own_id = subject.image_id if isinstance(subject, ImageIdQuery) else None
        scope = Scope(where_of(params.filters), params.exclude_patient, own_id, params.group_by)
        return cls(subject, params.k, params.rerank, params.explain, scope)
