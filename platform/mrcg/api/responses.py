"""Answers, as they go over the wire (DESIGN §4)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Hit(_Frozen):
    """One image of the gallery, as it is answered."""

    image_id: str
    label: str | None
    plane: str | None
    sequence: str | None
    site: str | None
    group: str = Field(description="of the same patient, or of one that cannot be told apart")
    score: float | None = Field(description="of the reranker, 0 to 1; null in the index's order")
    distance: float = Field(description="squared L2 of the embeddings: smaller is nearer")
    ann_rank: int = Field(description="rank by distance, from 1 on")
    preview: str = Field(description="where the service shows a small picture")


class Node(_Frozen):
    """One node of the query graph, in the index's order."""

    image_id: str
    ann_rank: int
    rank: int = Field(description="by score, from 1 on")
    score: float


class Influence(_Frozen):
    """A neighbour in the graph, and by how much its edge raised the score."""

    image_id: str
    moved: float


class Explained(_Frozen):
    """Why a hit stands where it stands."""

    image_id: str
    rank_change: int = Field(description="ranks up (positive) or down from the index's order")
    neighbours: list[Influence] = Field(description="those whose edges moved its score most")


class Explanation(_Frozen):
    """The whole query graph and what moved the hits."""

    nodes: list[Node]
    weights: list[list[float]] = Field(description="of the edges between nodes, 0 to 1")
    hits: list[Explained]


class Answer(_Frozen):
    """The answer to a search."""

    release: int
    request_id: str
    hits: list[Hit]
    classes: dict[str, int] = Field(description="hits of each label; those without one are not counted")
    reranked: bool
    partial: bool = Field(description="whether shards are missing")
    shards_answered: int
    shards: int
    requested: int
    found: int
    allowed: int = Field(description="images that the caller may find")
    passing: int = Field(description="those of them that pass the filters")
    out_of_distribution: bool
    milliseconds: dict[str, float]
    explanation: Explanation | None = None


class BatchLine(_Frozen):
    """The answer to one scan of many, or why there is none."""

    index: int = Field(description="of the scan, from 0 on, in the order in which they were sent")
    answer: Answer | None = None
    code: str | None = Field(None, description="stable code of the problem")
    detail: str | None = None


class ImageFacts(_Frozen):
    """What is known of an image of the gallery."""

    image_id: str
    label: str | None
    plane: str | None
    sequence: str | None
    site: str | None
    year: int | None
    group: str
    preview: str


class QuarantinedFile(_Frozen):
    """A file of the source that was not taken in."""

    file: str = Field(description="its key in the source; a hash of it where the corpus is de-identified")
    reason: str = Field(description="stable code")
    detail: str
