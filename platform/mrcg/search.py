"""How one query is answered, whoever runs the stages (DESIGN §4).

``answer`` chains embedder, searcher and reranker and decides what happens where one of them cannot.
``mrcg.pipeline`` gives it stages in this process, the service gives it stages on a cluster: so both
answer alike.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from mrcg.errors import MrcgError
from mrcg.imaging.slices import Grey
from mrcg.index.metric import Mask

log = logging.getLogger(__name__)


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
class Found:
    """Neighbours of one query, nearest first: all of length n, vectors (n, d)."""

    image_ids: list[str]
    labels: list[str | None]
    distances: list[float]
    vectors_nd: npt.NDArray[np.float16]


class Stages(Protocol):
    """The three stages, wherever they run. Each raises StageUnavailableError where it cannot answer."""

    async def embed(self, context: RequestContext, pixels_ss: Grey) -> npt.NDArray[np.float32]:
        """(s, s) grey levels -> (d,)."""
        ...

    async def search(self, context: RequestContext, embedding_d: npt.NDArray[np.float32], n: int) -> Found:
        """The n nearest that the context allows."""
        ...

    async def rerank(
        self, context: RequestContext, embedding_d: npt.NDArray[np.float32], vectors_nd: npt.NDArray[np.float16]
    ) -> npt.NDArray[np.float32]:
        """(n,) scores of the neighbours."""
        ...


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Hit(_Frozen):
    """One image of the gallery, as it is answered."""

    image_id: str
    label: str | None
    score: float | None
    distance: float
    ann_rank: int


class Answer(_Frozen):
    """The answer to a search."""

    release: int
    request_id: str
    hits: list[Hit]
    reranked: bool
    partial: bool
    requested: int
    found: int
    out_of_distribution: bool
    milliseconds: dict[str, float]


@dataclass(frozen=True)
class SearchSettings:
    """What a release and the recipe fix for every search."""

    neighbours: int
    ood_threshold: float | None
    rerank_reserve_ms: int


async def answer(
    stages: Stages, settings: SearchSettings, context: RequestContext, pixels_ss: Grey, k: int, rerank: bool
) -> Answer:
    """Answer one query: embed, search the N nearest, rerank them, keep k.

    Where the reranker fails or the deadline is near, the ANN order is answered with ``reranked`` False.

    Args:
        stages: embedder, searcher, reranker.
        settings: of the release.
        context: caller, allowed set, deadline.
        pixels_ss: the query, resized to the encoder's input.
        k: hits wanted, 1 <= k <= N.
        rerank: whether the reranker orders the hits.

    Raises:
        StageUnavailableError: the embedder or the searcher cannot answer.
    """
    assert 1 <= k <= settings.neighbours
    clock = _Clock()
    embedding = await stages.embed(context, pixels_ss)
    clock.lap("embed")
    found = await stages.search(context, embedding, settings.neighbours)
    clock.lap("search")
    scores = await _scores(stages, settings, context, embedding, found) if rerank and found.image_ids else None
    clock.lap("rerank")
    order = range(len(found.image_ids)) if scores is None else np.argsort(-scores, kind="stable").tolist()
    hits = [
        Hit(
            image_id=found.image_ids[rank],
            label=found.labels[rank],
            score=None if scores is None else float(scores[rank]),
            distance=found.distances[rank],
            ann_rank=rank + 1,
        )
        for rank in list(order)[:k]
    ]
    far = settings.ood_threshold is not None and bool(found.distances) and found.distances[0] > settings.ood_threshold
    return Answer(
        release=context.release,
        request_id=context.trace,
        hits=hits,
        reranked=scores is not None,
        partial=False,
        requested=k,
        found=len(hits),
        out_of_distribution=far,
        milliseconds=clock.laps,
    )


async def _scores(
    stages: Stages,
    settings: SearchSettings,
    context: RequestContext,
    embedding_d: npt.NDArray[np.float32],
    found: Found,
) -> npt.NDArray[np.float32] | None:
    if context.remaining() * 1000 < settings.rerank_reserve_ms:
        log.warning("request %s: too near its deadline to rerank", context.trace)
        return None
    try:
        return await stages.rerank(context, embedding_d, found.vectors_nd)
    except StageUnavailableError as error:
        log.warning("request %s: answered in ANN order, %s", context.trace, error)
        return None


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round((now - self._last) * 1000, 3)
        self._last = now
