"""What is asked: of which scan, and which of the gallery may answer (DESIGN §4)."""

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
    """Which of what a caller may find can answer one query, and whether one image of each group is enough.

    Attributes:
        where: the filter.
        exclude_patient: pseudonym of a patient whose images are left out.
        exclude_image: an image that is left out: the query itself, where it is of the gallery.
        group_by: of each patient or study only the nearest image is taken.
    """

    where: Where = field(default_factory=Where)
    exclude_patient: str | None = None
    exclude_image: str | None = None
    group_by: GroupBy = "none"


@dataclass(frozen=True)
class PixelQuery:
    """A scan that has to be embedded: (s, s) grey levels."""

    pixels_ss: Grey


@dataclass(frozen=True)
class VectorQuery:
    """(d,) what the caller's own encoder made of a scan."""

    embedding_d: Embedding


def where_of(filters: Filters) -> Where:
    """The index's predicate for the filters of a request."""
    return Where(
        site=filters.site, label=filters.label, sequence=filters.sequence, plane=filters.plane, years=filters.years
    )


Subject = PixelQuery | VectorQuery | ImageIdQuery


@dataclass(frozen=True)
class Query:
    """One question: k hits for a scan."""

    subject: Subject
    k: int
    rerank: bool = True
    explain: bool = False
    scope: Scope = field(default_factory=Scope)

    @classmethod
    def of(cls, subject: Subject, params: SearchParams) -> Query:
        """What is wanted of a scan; an image of the gallery is no hit of its own."""
        itself = subject.image_id if isinstance(subject, ImageIdQuery) else None
        scope = Scope(where_of(params.filters), params.exclude_patient, itself, params.group_by)
        return cls(subject, params.k, params.rerank, params.explain, scope)
