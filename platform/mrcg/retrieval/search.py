"""Answer one query (docs/design.md#search).

``answer`` calls embedder, searcher and reranker, and decides what happens if one of them fails.
``mrcg.retrieval.local`` gives it stages in this process, and the service gives it stages on a cluster, so both return
the same answers.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mrcg.api.requests import ImageIdQuery
from mrcg.api.responses import Answer, Explanation, Hit
from mrcg.arrays import Mask
from mrcg.errors import StageUnavailableError
from mrcg.imaging.slices import Grey
from mrcg.metrics.calibration import Platt
from mrcg.metrics.order import BY_SCORE, HitOrder, exact_copies
from mrcg.reranker.leave_one_out import LeaveOneOut
from mrcg.retrieval.explanation import RankedHits, explain
from mrcg.retrieval.query import Embedding, PixelQuery, Query, Scope, VectorQuery

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RequestContext:
    """Context of one request; every call to a stage has it.

    Attributes:
        principal: name of the caller.
        allowed: (rows of the gallery,) images that the caller may find; None for all.
        deadline: ``time.time()`` after which no stage is waited for.
        release: number of the release that the request is answered from.
        trace: id of the request in logs and in its answer.
    """

    principal: str
    allowed: Mask | None
    deadline: float
    release: int
    trace: str

    def remaining(self) -> float:
        """Return the seconds until the deadline; negative after it."""
        return self.deadline - time.time()


class Policy(Protocol):
    """Decides which images a caller may find."""

    def allowed(self, principal: str) -> Mask | None:
        """Return a (rows of the gallery,) mask of the images that a caller may find; None for all."""
        ...


class AllowAll:
    """Lets every caller find all images: the default policy, as there are no tenants yet."""

    def allowed(self, principal: str) -> Mask | None:
        """Return None, which allows all images."""
        return None


@dataclass(frozen=True)
class GalleryFacts:
    """Metadata of a gallery image, None where unknown."""

    label: str | None
    plane: str | None
    sequence: str | None
    site: str | None
    group: str


@dataclass(frozen=True)
class SearchHits:
    """Neighbours of one query, nearest first.

    Attributes:
        image_ids, facts, distances: n of each; distances are squared L2.
        vectors_nd: (n, d) stored embeddings.
        nearest: distance of the nearest image that the caller may find, in the scope or not; None if there is none.
        allowed: number of images that the caller may find.
        passing: number of those that are in the query's scope.
        shards: number of shards that were searched.
        total_shards: number of shards in the whole index.
    """

    image_ids: list[str]
    facts: list[GalleryFacts]
    distances: list[float]
    vectors_nd: npt.NDArray[np.float16]
    nearest: float | None
    allowed: int
    passing: int
    shards: int
    total_shards: int


class Stages(Protocol):
    """The stages of a search, local or remote. Each method raises StageUnavailableError if its stage cannot answer."""

    async def embed(self, context: RequestContext, pixels_ss: Grey) -> Embedding:
        """(s, s) grey levels -> (d,) embedding."""
        ...

    async def look_up(self, context: RequestContext, image_id: str) -> Embedding:
        """Return the (d,) stored embedding of an image that the context allows; NotFoundError if there is none."""
        ...

    async def search(self, context: RequestContext, embedding_d: Embedding, n: int, scope: Scope) -> SearchHits:
        """Return the n nearest images that the context allows and that are in the scope."""
        ...

    async def rerank(
        self, context: RequestContext, embedding_d: Embedding, vectors_nd: npt.NDArray[np.float16]
    ) -> npt.NDArray[np.float32]:
        """Return the (n,) scores of the neighbours."""
        ...

    async def explain(
        self, context: RequestContext, embedding_d: Embedding, vectors_nd: npt.NDArray[np.float16]
    ) -> LeaveOneOut:
        """Return the edges of the query graph, and the scores with each neighbour left out."""
        ...


@dataclass(frozen=True)
class SearchSettings:
    """Settings of all searches of a release.

    Attributes:
        neighbours: N, the number of neighbours in a query graph.
        ood_threshold: squared L2; a query whose nearest image is farther is out of distribution. None never flags.
        rerank_reserve_ms: with fewer milliseconds left before the deadline, the ANN order is returned.
        trained_dim: dimensions of the trained part of a vector.
        order: of the hits.
        calibration: from scores to probabilities; None shows none.
        withheld: why no probability is shown.
        typical_distance: squared L2 of a typical hit, for similarities; None shows none.
    """

    neighbours: int
    ood_threshold: float | None
    rerank_reserve_ms: int
    trained_dim: int
    order: HitOrder = BY_SCORE
    calibration: Platt | None = None
    withheld: str | None = None
    typical_distance: float | None = None


async def answer(stages: Stages, settings: SearchSettings, context: RequestContext, query: Query) -> Answer:
    """Answer one query: embed it, search for the N nearest images, rerank them, and keep k.

    If the reranker fails or the deadline is near, the hits are in ANN order and ``reranked`` is False.

    Args:
        stages: embedder, searcher and reranker.
        settings: of the release.
        context: caller, allowed images and deadline.
        query: with 1 <= k <= N.

    Raises:
        StageUnavailableError: the embedder or the searcher cannot answer.
        NotFoundError: the query is an image that does not exist or that the caller may not find.
    """
    assert 1 <= query.k <= settings.neighbours
    clock = _Clock()
    embedding = await _embedding(stages, context, query)
    clock.lap("embed")
    near = await stages.search(context, embedding, settings.neighbours, query.scope)
    clock.lap("search")
    scores = await _scores(stages, settings, context, embedding, near) if query.rerank and near.image_ids else None
    clock.lap("rerank")
    ranked = None if scores is None else _ranked(settings, embedding, near, scores)
    order = list(range(len(near.image_ids))) if ranked is None else ranked.order
    explanation = None
    if query.explain and ranked is not None:
        explanation = await _explanation(stages, context, embedding, near, ranked, query.k)
        clock.lap("explain")
    score_ranks = {} if ranked is None else {place: rank for rank, place in enumerate(ranked.by_score, 1)}
    hits = [
        _hit(settings, near, ranked, place, rank, score_ranks.get(place))
        for rank, place in enumerate(order[: query.k], 1)
    ]
    return Answer(
        release=context.release,
        request_id=context.trace,
        hits=hits,
        classes=dict(Counter(hit.label for hit in hits if hit.label is not None).most_common()),
        reranked=ranked is not None,
        order="ann" if ranked is None else settings.order.name,
        probability_withheld=None if ranked is None else settings.withheld,
        partial=near.shards < near.total_shards,
        shards_answered=near.shards,
        shards=near.total_shards,
        requested=query.k,
        found=len(hits),
        allowed=near.allowed,
        passing=near.passing,
        out_of_distribution=_out_of_distribution(settings, near),
        milliseconds=clock.laps,
        explanation=explanation,
    )


async def _embedding(stages: Stages, context: RequestContext, query: Query) -> Embedding:
    match query.subject:
        case PixelQuery(pixels):
            return await stages.embed(context, pixels)
        case VectorQuery(embedding):
            return embedding
        case ImageIdQuery(image_id):
            return await stages.look_up(context, image_id)


def _ranked(
    settings: SearchSettings, embedding_d: Embedding, near: SearchHits, scores_n: npt.NDArray[np.float32]
) -> RankedHits:
    copies_n = exact_copies(embedding_d[None], near.vectors_nd[None], settings.trained_dim)[0]
    return RankedHits(settings.order, scores_n, np.array(near.distances), copies_n)


def _hit(
    settings: SearchSettings,
    near: SearchHits,
    ranked: RankedHits | None,
    place: int,
    rank: int,
    score_rank: int | None,
) -> Hit:
    facts, image_id, score = near.facts[place], near.image_ids[place], None
    if ranked is not None:
        score = float(ranked.scores_n[place])
    calibration, distance = settings.calibration, near.distances[place]
    return Hit(
        image_id=image_id,
        label=facts.label,
        plane=facts.plane,
        sequence=facts.sequence,
        site=facts.site,
        group=facts.group,
        score=score,
        probability=None if score is None or calibration is None else float(calibration.apply(np.array(score))),
        similarity=_similarity(distance, settings.typical_distance),
        distance=distance,
        rank=rank,
        ann_rank=place + 1,
        score_rank=score_rank,
        preview=f"/v1/images/{image_id}/preview",
    )


def _similarity(distance: float, typical: float | None) -> float | None:
    """Return 1 for a distance of 0, 0.5 for the typical distance; None where that is unknown."""
    return None if not typical else typical / (typical + distance)


def _out_of_distribution(settings: SearchSettings, near: SearchHits) -> bool:
    # The nearest image may be outside the scope: a narrow filter does not make a query out of distribution.
    return settings.ood_threshold is not None and near.nearest is not None and near.nearest > settings.ood_threshold


async def _scores(
    stages: Stages, settings: SearchSettings, context: RequestContext, embedding_d: Embedding, near: SearchHits
) -> npt.NDArray[np.float32] | None:
    if context.remaining() * 1000 < settings.rerank_reserve_ms:
        log.warning("request %s: returned in ANN order, the deadline is too near to rerank", context.trace)
        return None
    try:
        return await stages.rerank(context, embedding_d, near.vectors_nd)
    except StageUnavailableError as error:
        log.warning("request %s: returned in ANN order, %s", context.trace, error)
        return None


async def _explanation(
    stages: Stages,
    context: RequestContext,
    embedding_d: Embedding,
    near: SearchHits,
    ranked: RankedHits,
    k: int,
) -> Explanation | None:
    try:
        leave_one_out = await stages.explain(context, embedding_d, near.vectors_nd)
    except StageUnavailableError as error:
        log.warning("request %s: returned without an explanation, %s", context.trace, error)
        return None
    return explain(near.image_ids, ranked, leave_one_out, k)


class _Clock:
    """Measures the milliseconds of consecutive steps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round((now - self._last) * 1000, 3)
        self._last = now
