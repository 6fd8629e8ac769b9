"""Response models (docs/serving.md#requests-and-answers). Descriptions are part of the OpenAPI document."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mrcg.frozen import Frozen


class Hit(Frozen):
    """One hit: an image of the gallery."""

    image_id: str
    label: str | None
    plane: str | None
    sequence: str | None
    site: str | None
    group: str = Field(description="patient of the image; its study or its near-duplicates if the patient is unknown")
    score: float | None = Field(description="raw score of the reranker, 0 to 1; null if the hits were not reranked")
    probability: float | None = Field(
        None, description="calibrated probability that the hit has the query's class; null if it is not known"
    )
    similarity: float | None = Field(
        None,
        description="1 for an exact copy, 0.5 at the release's typical distance of a hit, towards 0 beyond; null if "
        "the release has no typical distance",
    )
    distance: float = Field(description="squared L2 distance of the embeddings; smaller is nearer")
    rank: int = Field(0, description="rank in this answer, from 1; 0 from services of earlier versions")
    ann_rank: int = Field(description="rank by distance, from 1")
    score_rank: int | None = Field(None, description="rank by score, from 1; null if the hits were not reranked")
    preview: str = Field(description="path of a small preview image on the service")


class Node(Frozen):
    """One node of the query graph. Nodes are ordered by distance."""

    image_id: str
    ann_rank: int
    rank: int = Field(description="rank in the order of the answer, from 1")
    score: float


class Influence(Frozen):
    """A neighbour in the query graph, and how it moved the hit among the others."""

    image_id: str
    moved: float = Field(
        description="ranks that the hit is higher (positive) or lower (negative) than without the neighbour; "
        "services of earlier versions gave a difference of scores"
    )


class Explained(Frozen):
    """Why a hit has its rank: what is different if the distance, the score or a neighbour is left out."""

    image_id: str
    rank_change: int = Field(description="ranks that the hit is higher (positive) or lower (negative) than by distance")
    by_distance: int = Field(
        0, description="ranks that the hit is higher (positive) or lower (negative) than by score alone"
    )
    neighbours: list[Influence] = Field(
        description="neighbours without which the hit would have another rank, strongest first"
    )


class Explanation(Frozen):
    """The query graph, and what influenced the rank of each hit."""

    nodes: list[Node]
    weights: list[list[float]] = Field(description="weights of the edges between nodes, 0 to 1")
    hits: list[Explained]
    graph_changed_order: bool = Field(
        True, description="false if no hit would have another rank without any one of its neighbours"
    )


class Answer(Frozen):
    """The answer to a search."""

    release: int
    request_id: str
    hits: list[Hit]
    classes: dict[str, int] = Field(description="number of hits per label; hits without a label are not counted")
    reranked: bool = Field(description="whether the reranker scored the hits")
    order: Literal["ann", "fused", "score"] = Field(
        "score", description="order of the hits: by distance, by score and distance, or by score alone"
    )
    probability_withheld: str | None = Field(
        None, description="why hits have no probability; null where they have one, or were not reranked"
    )
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


class BatchLine(Frozen):
    """The answer for one scan of a batch, or the problem with it."""

    index: int = Field(description="index of the scan in the request, from 0")
    answer: Answer | None = None
    code: str | None = Field(None, description="stable code of the problem")
    detail: str | None = None


class ImageFacts(Frozen):
    """Metadata of a gallery image; null where unknown."""

    image_id: str
    label: str | None
    plane: str | None
    sequence: str | None
    site: str | None
    year: int | None
    group: str
    preview: str


class QuarantinedFile(Frozen):
    """A quarantined file: a file of the source that could not be used."""

    file: str = Field(description="key of the file in the source; a hash of it if the corpus is de-identified")
    reason: str = Field(description="stable code of the reason")
    detail: str
