"""Response models (docs/serving.md#requests-and-answers). Descriptions are part of the OpenAPI document."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Hit(_Frozen):
    """One hit: an image of the gallery."""

    image_id: str
    label: str | None
    plane: str | None
    sequence: str | None
    site: str | None
    group: str = Field(description="patient of the image; its study or its near-duplicates if the patient is unknown")
    score: float | None = Field(description="score of the reranker, 0 to 1; null if the hits were not reranked")
    distance: float = Field(description="squared L2 distance of the embeddings; smaller is nearer")
    ann_rank: int = Field(description="rank by distance, from 1")
    preview: str = Field(description="path of a small preview image on the service")


class Node(_Frozen):
    """One node of the query graph. Nodes are ordered by distance."""

    image_id: str
    ann_rank: int
    rank: int = Field(description="rank by score, from 1")
    score: float


class Influence(_Frozen):
    """A neighbour in the query graph, and how much its edge raised the score of the hit; negative if it lowered it."""

    image_id: str
    moved: float


class Explained(_Frozen):
    """Why a hit has its rank."""

    image_id: str
    rank_change: int = Field(description="ranks moved up (positive) or down (negative) by the reranker")
    neighbours: list[Influence] = Field(description="neighbours whose edges changed the score most, strongest first")


class Explanation(_Frozen):
    """The query graph, and what influenced the rank of each hit."""

    nodes: list[Node]
    weights: list[list[float]] = Field(description="weights of the edges between nodes, 0 to 1")
    hits: list[Explained]


class Answer(_Frozen):
    """The answer to a search."""

    release: int
    request_id: str
    hits: list[Hit]
    classes: dict[str, int] = Field(description="number of hits per label; hits without a label are not counted")
    reranked: bool
    partial: bool = Field(description="true if some shards did not answer")
    shards_answered: int
    shards: int
    requested: int
    found: int
    allowed: int = Field(description="number of images that the caller may find")
    passing: int = Field(description="number of those images that pass the filters")
    out_of_distribution: bool
    milliseconds: dict[str, float]
    explanation: Explanation | None = None


class BatchLine(_Frozen):
    """The answer for one scan of a batch, or the problem with it."""

    index: int = Field(description="index of the scan in the request, from 0")
    answer: Answer | None = None
    code: str | None = Field(None, description="stable code of the problem")
    detail: str | None = None


class ImageFacts(_Frozen):
    """Metadata of a gallery image; null where unknown."""

    image_id: str
    label: str | None
    plane: str | None
    sequence: str | None
    site: str | None
    year: int | None
    group: str
    preview: str


class QuarantinedFile(_Frozen):
    """A quarantined file: a file of the source that could not be used."""

    file: str = Field(description="key of the file in the source; a hash of it if the corpus is de-identified")
    reason: str = Field(description="stable code of the reason")
    detail: str
