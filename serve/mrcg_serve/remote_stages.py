"""The stages of a search as calls to other deployments, each for all requests that are waiting for the same.

Whichever replica answers: one that lacks the release says so, and another is asked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from grpc.aio import AioRpcError
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from mrcg.config.settings import Autoscale, ServeSettings
from mrcg.errors import NotFoundError
from mrcg.imaging.slices import Grey
from mrcg.reranker.influence import Influences
from mrcg.retrieval.hot_swap import ReleaseNotLoadedError
from mrcg.retrieval.merge import HitDetails, ShardHits, assemble_hits, merge_hits, rows_to_fetch
from mrcg.retrieval.query import Embedding, Scope
from mrcg.retrieval.search import RequestContext, SearchHits, StageUnavailableError
from mrcg_serve.batching import Coalescer

log = logging.getLogger(__name__)

T = TypeVar("T")
Item = TypeVar("Item")
#: What a call to a replica raises where the replica, or the way to it, is at fault.
CALL_ERRORS = (RayError, RayServeException, AioRpcError)
#: Replicas that are asked, one after the other, while those asked lack the release.
ASKED = 6
#: Seconds in which all replicas of a stage have to say which releases they have.
ROLL_CALL = 5.0


class RemoteStages:
    """Embedder, searcher and reranker behind Serve handles. Nobody waits past a request's deadline."""

    def __init__(
        self,
        embedder: DeploymentHandle,
        searchers: Sequence[DeploymentHandle],
        reranker: DeploymentHandle,
        settings: ServeSettings = ServeSettings(),
        scored: Callable[[int, npt.NDArray[np.float32]], None] = lambda release, scores_n: None,
    ) -> None:
        self._handles = (embedder, *searchers, reranker)
        self._embed: _Embed = _coalesced(embedder, "embed", settings.embedder)
        self._parts = [_Part.of(one, settings.searcher) for one in searchers]
        self._rerank: _Rerank = _coalesced(reranker, "rerank", settings.reranker)
        self._explain: _Explain = _coalesced(reranker, "explain", settings.reranker)
        self._part_s = settings.part_ms / 1000
        self._scored = scored

    async def releases(self) -> set[int]:
        """Those that every replica of every stage can answer under.

        Raises:
            StageUnavailableError: some stage cannot be asked.
        """
        everywhere: set[int] | None = None
        for handle in self._handles:
            try:
                found = await handle.broadcast("releases").results_async(timeout_s=ROLL_CALL)
            except (*CALL_ERRORS, TimeoutError) as error:
                raise StageUnavailableError(f"{handle.deployment_name} cannot say which releases it has") from error
            for one in found:
                everywhere = set(one) if everywhere is None else everywhere & set(one)
        return everywhere or set()

    async def embed(self, context: RequestContext, pixels_ss: Grey) -> Embedding:
        """(s, s) grey levels -> (d,)."""
        return await _ask("embedder", self._embed, context, pixels_ss)

    async def look_up(self, context: RequestContext, image_id: str) -> Embedding:
        """(d,) stored embedding of an image that the context allows."""
        asked = [_ask("searcher", one.look_up, context, image_id) for one in self._parts]
        found = await asyncio.gather(*asked, return_exceptions=True)
        for one in found:
            if not isinstance(one, BaseException):
                return one
        # A part that does not answer may have it.
        raise min((one for one in found if isinstance(one, BaseException)), key=lambda e: isinstance(e, NotFoundError))

    async def search(self, context: RequestContext, embedding_d: Embedding, n: int, scope: Scope) -> SearchHits:
        """The n nearest that the context allows and the scope asks for."""
        if len(self._parts) == 1:
            return await _ask("searcher", self._parts[0].search, context, (embedding_d, n, scope))
        soon = self._soon(context)
        asked = [_ask("searcher", one.near, soon, (embedding_d, n, scope)) for one in self._parts]
        parts: list[ShardHits | None] = await _those_that_answer(asked)
        while any(part is not None for part in parts):
            places = merge_hits(parts, n)
            rows = rows_to_fetch(places, len(parts))
            soon = self._soon(context)
            fetching = [
                _ask("searcher", one.fetch, soon, some) if some else _nothing()
                for one, some in zip(self._parts, rows, strict=True)
            ]
            fetched: list[HitDetails | None] = await _those_that_answer(fetching)
            lost = [number for number, some in enumerate(rows) if some and fetched[number] is None]
            if not lost:
                return assemble_hits(places, parts, fetched)
            for number in lost:  # what it found cannot be shown: then others are the nearest
                parts[number] = None
        raise StageUnavailableError("no searcher answers")

    def _soon(self, context: RequestContext) -> RequestContext:
        # Who waits for one part to the end has no time left for the reranker.
        return replace(context, deadline=min(context.deadline, time.time() + self._part_s))

    async def rerank(
        self, context: RequestContext, embedding_d: Embedding, vectors_nd: npt.NDArray[np.float16]
    ) -> npt.NDArray[np.float32]:
        """(n,) scores of the neighbours."""
        scores = await _ask("reranker", self._rerank, context, (embedding_d, vectors_nd))
        self._scored(context.release, scores)
        return scores

    async def explain(
        self, context: RequestContext, embedding_d: Embedding, vectors_nd: npt.NDArray[np.float16], nodes: list[int]
    ) -> Influences:
        """What moved the scores of some of the neighbours."""
        return await _ask("reranker", self._explain, context, (embedding_d, vectors_nd, nodes))


_Embed = Coalescer[Grey, Embedding]
_Rerank = Coalescer[tuple[Embedding, npt.NDArray[np.float16]], npt.NDArray[np.float32]]
_Explain = Coalescer[tuple[Embedding, npt.NDArray[np.float16], list[int]], Influences]
_Asked = tuple[Embedding, int, Scope]


@dataclass(frozen=True)
class _Part:
    """What the searchers of one part of the index are asked."""

    search: Coalescer[_Asked, SearchHits]
    near: Coalescer[_Asked, ShardHits]
    fetch: Coalescer[list[int], HitDetails]
    look_up: Coalescer[str, Embedding]

    @classmethod
    def of(cls, handle: DeploymentHandle, scale: Autoscale) -> _Part:
        return cls(*(_coalesced(handle, name, scale) for name in ("search", "near", "fetch", "look_up")))


def _coalesced(handle: DeploymentHandle, name: str, scale: Autoscale) -> Coalescer[Any, Any]:
    method = getattr(handle, name)  # once: Serve makes a new handle for each
    return Coalescer(lambda contexts, items: method.remote(contexts, items), scale.max_batch_size, scale.max_replicas)


async def _those_that_answer(asked: Sequence[Awaitable[T]]) -> list[T | None]:
    """Answers in order, None where a stage is out; everything else is raised."""
    found = await asyncio.gather(*asked, return_exceptions=True)
    answers: list[T | None] = []
    for one in found:
        if isinstance(one, StageUnavailableError):
            log.warning("a part of the index does not answer: %s", one)
            answers.append(None)
        elif isinstance(one, BaseException):
            raise one
        else:
            answers.append(one)
    return answers


async def _nothing() -> Any:
    return None


async def _ask(stage: str, call: Coalescer[Item, T], context: RequestContext, item: Item) -> T:
    missing: ReleaseNotLoadedError | None = None
    for _ in range(ASKED):
        try:
            return await _ask_one(stage, call, context, item)
        except ReleaseNotLoadedError as error:
            missing = error
    assert missing is not None
    raise missing


async def _ask_one(stage: str, call: Coalescer[Item, T], context: RequestContext, item: Item) -> T:
    try:
        async with asyncio.timeout(max(0.0, context.remaining())):
            return await call(context, item)
    except TimeoutError as error:
        raise StageUnavailableError(f"the {stage} did not answer before the deadline") from error
    except CALL_ERRORS as error:
        log.warning("request %s: %s failed", context.trace, stage, exc_info=True)
        raise StageUnavailableError(f"the {stage} is overloaded or down ({type(error).__name__})") from error
