"""What is asked: of which scan, and which of the gallery may answer (DESIGN §4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from mrcg.imaging.slices import Grey
from mrcg.index.gallery import Where

GroupBy = Literal["none", "patient", "study"]
Embedding = npt.NDArray[np.float32]


class Filters(BaseModel):
    """Which images may answer: those that have one of the values of each field that is given. Unknown never passes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: tuple[str, ...] = ()
    site: tuple[str, ...] = ()
    sequence: tuple[str, ...] = ()
    plane: tuple[str, ...] = ()
    years: tuple[int, int] | None = Field(None, description="first and last year of acquisition, both included")

    def where(self) -> Where:
        """The same for the index."""
        return Where(label=self.label, site=self.site, sequence=self.sequence, plane=self.plane, years=self.years)


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
class ByPixels:
    """A scan that has to be embedded: (s, s) grey levels."""

    pixels_ss: Grey


@dataclass(frozen=True)
class ByEmbedding:
    """(d,) what the caller's own encoder made of a scan."""

    embedding_d: Embedding


@dataclass(frozen=True)
class ByImage:
    """An image of the gallery; it never answers for itself."""

    image_id: str


Subject = ByPixels | ByEmbedding | ByImage


class Wanted(BaseModel):
    """What is asked of a search: the same over HTTP, from the client and in this process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    k: int = Field(10, description="hits: 1 to the release's N, 50 by default")
    rerank: bool = Field(True, description="false answers in the index's order")
    group_by: GroupBy = Field("none", description="one image of each patient or study")
    filters: Filters = Filters()
    exclude_patient: str | None = Field(None, description="pseudonym of a patient whose images are left out")
    deadline_ms: int | None = Field(None, gt=0, description="time for the answer, at most the service's own")
    explain: bool = Field(False, description="adds the query graph and what moved the hits")


class Sent(BaseModel):
    """An embedding that the caller made, and the fingerprint of the encoder that made it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedding: tuple[float, ...]
    encoder: str


@dataclass(frozen=True)
class Query:
    """One question: k hits for a scan."""

    subject: Subject
    k: int
    rerank: bool = True
    explain: bool = False
    scope: Scope = field(default_factory=Scope)

    @classmethod
    def of(cls, subject: Subject, wanted: Wanted) -> Query:
        """What is wanted of a scan; an image of the gallery is no hit of its own."""
        itself = subject.image_id if isinstance(subject, ByImage) else None
        scope = Scope(wanted.filters.where(), wanted.exclude_patient, itself, wanted.group_by)
        return cls(subject, wanted.k, wanted.rerank, wanted.explain, scope)
