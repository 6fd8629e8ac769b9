"""How one query is answered, whoever runs the stages (DESIGN §4).

``answer`` chains embedder, searcher and reranker and decides what happens where one of them cannot.
``mrcg.retrieval.local`` gives it stages in this process, the service gives it stages on a cluster: so both
answer alike.
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
from mrcg.api.responses import Answer, Explained, Explanation, Hit, Influence, Node
from mrcg.errors import MrcgError
from mrcg.imaging.slices import Grey
from mrcg.index.distances import Mask
from mrcg.reranker.influence import Influences
from mrcg.retrieval.query import Embedding, PixelQuery, Query, Scope, VectorQuery

log = logging.getLogger(__name__)

#: Neighbours that are named for each hit that is explained.
EXPLAINED = 5


class StageUnavailableError(MrcgError):
    """A stage could not answer (in time); the search degrades or is refused."""


@dataclass(frozen=True)
class RequestContext:
    """What goes with a call through every stage."""

    principal: str
    allowed: Mask | None
    deadline: float  # time.time() after which nobody waits any more
    release: int
    trace: str

    def remaining(self) -> float:
        """Seconds until the deadline, negative when it has passed."""
        return self.deadline - time.time()


class Policy(Protocol):
    """Decides what a caller may find."""

    def allowed(self, principal: str) -> Mask | None:
        """(rows of the gallery,) or None for all of it."""
        ...


class AllowAll:
    """Everybody may find everything: the policy until tenancy comes."""

    def allowed(self, principal: str) -> Mask | None:
        """None: all of the gallery."""
        return None


@dataclass(frozen=True)
class Facts:
    """What is known of an image of the gallery."""

    label: str | None
    plane: str | None
    sequence: str | None
    site: str | None
    group: str


@dataclass(frozen=True)
class SearchHits:
    """Neighbours of one query, nearest first.

    Attributes:
        image_ids, facts, distances, vectors_nd: all of length n; (n, d) vectors.
        nearest: distance of the nearest that the caller may find, filtered or not; None where there is none.
        allowed: images that the caller may find.
        passing: those of them that are within the query's scope.
        shards, of: how many shards answered, of how many.
    """

    image_ids: list[str]
    facts: list[Facts]
    distances: list[float]
    vectors_nd: npt.NDArray[np.float16]
    nearest: float | None
    allowed: int
    passing: int
    shards: int
    of: int


class Stages(Protocol):
    """The stages, wherever they run. Each raises StageUnavailableError where it cannot answer."""

    async def embed(self, context: RequestContext, pixels_ss: Grey) -> Embedding:
        """(s, s) grey levels -> (d,)."""
        ...

    async def look_up(self, context: RequestContext, image_id: str) -> Embedding:
        """(d,) stored embedding of an image that the context allows; NotFoundError where there is none."""
        ...

    async def search(self, context: RequestContext, embedding_d: Embedding, n: int, scope: Scope) -> SearchHits:
        """The n nearest that the context allows and the scope asks for."""
        ...

    async def rerank(
        self, context: RequestContext, embedding_d: Embedding, vectors_nd: npt.NDArray[np.float16]
    ) -> npt.NDArray[np.float32]:
        """(n,) scores of the neighbours."""
        ...

    async def explain(
        self, context: RequestContext, embedding_d: Embedding, vectors_nd: npt.NDArray[np.float16], nodes: list[int]
    ) -> Influences:
        """What moved the scores of some of the neighbours."""
        ...


@dataclass(frozen=True)
class SearchSettings:
    """What a release and the recipe fix for every search."""

    neighbours: int
    ood_threshold: float | None
    rerank_reserve_ms: int


async def answer(stages: Stages, settings: SearchSettings, context: RequestContext, query: Query) -> Answer:
    """Answer one query: embed, search the N nearest, rerank them, keep k.

    Where the reranker fails or the deadline is near, the ANN order is answered with ``reranked`` False.

    Args:
        stages: embedder, searcher, reranker.
        settings: of the release.
        context: caller, allowed set, deadline.
        query: 1 <= k <= N.

    Raises:
        StageUnavailableError: the embedder or the searcher cannot answer.
        NotFoundError: the query is an image that the caller may not find.
    """
    assert 1 <= query.k <= settings.neighbours
    clock = _Clock()
    embedding = await _embedding(stages, context, query)
    clock.lap("embed")
    found = await stages.search(context, embedding, settings.neighbours, query.scope)
    clock.lap("search")
    scores = await _scores(stages, settings, context, embedding, found) if query.rerank and found.image_ids else None
    clock.lap("rerank")
    order = list(range(len(found.image_ids))) if scores is None else np.argsort(-scores, kind="stable").tolist()
    explanation = None
    if query.explain and scores is not None:
        explanation = await _explanation(stages, context, embedding, found, scores, order, query.k)
        clock.lap("explain")
    hits = [_hit(found, scores, rank) for rank in order[: query.k]]
    return Answer(
        release=context.release,
        request_id=context.trace,
        hits=hits,
        classes=dict(Counter(hit.label for hit in hits if hit.label is not None).most_common()),
        reranked=scores is not None,
        partial=found.shards < found.of,
        shards_answered=found.shards,
        shards=found.of,
        requested=query.k,
        found=len(hits),
        allowed=found.allowed,
        passing=found.passing,
        out_of_distribution=_far(settings, found),
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


def _hit(found: SearchHits, scores: npt.NDArray[np.float32] | None, rank: int) -> Hit:
    facts, image_id = found.facts[rank], found.image_ids[rank]
    return Hit(
        image_id=image_id,
        label=facts.label,
        plane=facts.plane,
        sequence=facts.sequence,
        site=facts.site,
        group=facts.group,
        score=None if scores is None else float(scores[rank]),
        distance=found.distances[rank],
        ann_rank=rank + 1,
        preview=f"/v1/images/{image_id}/preview",
    )


def _far(settings: SearchSettings, found: SearchHits) -> bool:
    # Of the nearest, filtered or not: a narrow filter makes no query strange.
    return settings.ood_threshold is not None and found.nearest is not None and found.nearest > settings.ood_threshold


async def _scores(
    stages: Stages, settings: SearchSettings, context: RequestContext, embedding_d: Embedding, found: SearchHits
) -> npt.NDArray[np.float32] | None:
    if context.remaining() * 1000 < settings.rerank_reserve_ms:
        log.warning("request %s: too near its deadline to rerank", context.trace)
        return None
    try:
        return await stages.rerank(context, embedding_d, found.vectors_nd)
    except StageUnavailableError as error:
        log.warning("request %s: answered in ANN order, %s", context.trace, error)
        return None


async def _explanation(
    stages: Stages,
    context: RequestContext,
    embedding_d: Embedding,
    found: SearchHits,
    scores_n: npt.NDArray[np.float32],
    order: list[int],
    k: int,
) -> Explanation | None:
    try:
        influences = await stages.explain(context, embedding_d, found.vectors_nd, order[:k])
    except StageUnavailableError as error:
        log.warning("request %s: answered without an explanation, %s", context.trace, error)
        return None
    rank_of = {place: rank for rank, place in enumerate(order, 1)}
    nodes = [
        Node(image_id=one, ann_rank=place + 1, rank=rank_of[place], score=float(scores_n[place]))
        for place, one in enumerate(found.image_ids)
    ]
    return Explanation(
        nodes=nodes,
        weights=np.round(influences.weights_nn.astype(float), 4).tolist(),
        hits=[
            Explained(
                image_id=found.image_ids[place],
                rank_change=place + 1 - rank,
                neighbours=[
                    Influence(image_id=found.image_ids[other], moved=float(influences.moved_kn[rank - 1, other]))
                    for other in influences.strongest(rank - 1, EXPLAINED)
                ],
            )
            for rank, place in enumerate(order[:k], 1)
        ],
    )


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round((now - self._last) * 1000, 3)
        self._last = now
