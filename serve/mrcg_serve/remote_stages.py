"""The stages of a search as calls to other deployments, each call for all requests that wait for the same stage.

Any replica may take a call. One that lacks the release says so, and the call is repeated, so that another can answer.
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

from mrcg.config.service import Autoscale, ServeSettings
from mrcg.errors import NotFoundError, ReleaseNotLoadedError, StageUnavailableError
from mrcg.imaging.slices import Grey
from mrcg.reranker.leave_one_out import LeaveOneOut
from mrcg.retrieval.merge import HitDetails, ShardHits, assemble_hits, merge_hits, rows_to_fetch
from mrcg.retrieval.query import Embedding, Scope
from mrcg.retrieval.search import RequestContext, SearchHits
from mrcg_serve.batching import CallBatcher

log = logging.getLogger(__name__)

T = TypeVar("T")
Item = TypeVar("Item")
#: What a call to a replica raises if the replica or the connection to it fails.
CALL_ERRORS = (RayError, RayServeException, AioRpcError)
#: Calls made for one item, at most, while the replicas that take them lack the release.
MAX_TRIES = 6
#: Seconds in which all replicas of a stage must report their releases.
RELEASES_TIMEOUT_S = 5.0


class RemoteStages:
    """Embedder, searcher and reranker behind Serve handles. No call lasts past its request's deadline.

    Args:
        embedder: its handle.
        searchers: handles, one for each part of the index.
        reranker: its handle.
        settings: of the service.
        record_scores: is called with the release and the (n,) scores of each reranked search.
    """

    def __init__(
        self,
        embedder: DeploymentHandle,
        searchers: Sequence[DeploymentHandle],
        reranker: DeploymentHandle,
        settings: ServeSettings = ServeSettings(),
        record_scores: Callable[[int, npt.NDArray[np.float32]], None] = lambda release, scores_n: None,
    ) -> None:
        self._handles = (embedder, *searchers, reranker)
        self._embed: _Embed = _batched(embedder, "embed", settings.embedder)
        self._parts = [_Part.of(handle, settings.searcher) for handle in searchers]
        self._rerank: _Rerank = _batched(reranker, "rerank", settings.reranker)
        self._explain: _Explain = _batched(reranker, "explain", settings.reranker)
        self._part_s = settings.part_ms / 1000
        self._record_scores = record_scores

    async def releases(self) -> set[int]:
        """Return the releases that every replica of every stage has loaded.

        Raises:
            StageUnavailableError: a stage did not report its releases in time.
        """
        everywhere: set[int] | None = None
        for handle in self._handles:
            try:
                releases_by_replica = await handle.broadcast("releases").results_async(timeout_s=RELEASES_TIMEOUT_S)
            except (*CALL_ERRORS, TimeoutError) as error:
                raise StageUnavailableError(f"{handle.deployment_name} does not report its releases") from error
            for numbers in releases_by_replica:
                everywhere = set(numbers) if everywhere is None else everywhere & set(numbers)
        return everywhere or set()

    async def embed(self, context: RequestContext, pixels_ss: Grey) -> Embedding:
        """(s, s) grey levels -> (d,) embedding."""
        return await _call_stage("embedder", self._embed, context, pixels_ss)

    async def look_up(self, context: RequestContext, image_id: str) -> Embedding:
        """Return the (d,) stored embedding of an image that the context allows.

        Raises:
            NotFoundError: no part of the index has such an image.
            StageUnavailableError: a part does not respond, and no other has the image.
        """
        calls = [_call_stage("searcher", part.look_up, context, image_id) for part in self._parts]
        results = await asyncio.gather(*calls, return_exceptions=True)
        for result in results:
            if not isinstance(result, BaseException):
                return result
        # An unavailable part may have the image: NotFoundError is raised only if all parts say so.
        errors = [result for result in results if isinstance(result, BaseException)]
        raise min(errors, key=lambda error: isinstance(error, NotFoundError))

    async def search(self, context: RequestContext, embedding_d: Embedding, n: int, scope: Scope) -> SearchHits:
        """Return the n nearest images that the context allows and that are in the scope.

        Of several parts of the index, those that do not respond in time are left out.

        Raises:
            StageUnavailableError: no part responds.
        """
        if len(self._parts) == 1:
            return await _call_stage("searcher", self._parts[0].search, context, (embedding_d, n, scope))
        part_context = self._with_part_deadline(context)
        searches = [_call_stage("searcher", part.near, part_context, (embedding_d, n, scope)) for part in self._parts]
        parts: list[ShardHits | None] = await _available_results(searches)
        while any(part is not None for part in parts):
            places = merge_hits(parts, n)
            rows = rows_to_fetch(places, len(parts))
            part_context = self._with_part_deadline(context)
            fetches = [
                _call_stage("searcher", part.fetch, part_context, part_rows) if part_rows else _no_result()
                for part, part_rows in zip(self._parts, rows, strict=True)
            ]
            fetched: list[HitDetails | None] = await _available_results(fetches)
            lost = [number for number, part_rows in enumerate(rows) if part_rows and fetched[number] is None]
            if not lost:
                return assemble_hits(places, parts, fetched)
            for number in lost:  # details of its hits are unavailable: merge again without this part
                parts[number] = None
        raise StageUnavailableError("no searcher responds; retry")

    def _with_part_deadline(self, context: RequestContext) -> RequestContext:
        # Waiting for one part until the request's deadline would leave no time for the reranker.
        return replace(context, deadline=min(context.deadline, time.time() + self._part_s))

    async def rerank(
        self, context: RequestContext, embedding_d: Embedding, vectors_nd: npt.NDArray[np.float16]
    ) -> npt.NDArray[np.float32]:
        """Return the (n,) scores of the neighbours."""
        scores = await _call_stage("reranker", self._rerank, context, (embedding_d, vectors_nd))
        self._record_scores(context.release, scores)
        return scores

    async def explain(
        self, context: RequestContext, embedding_d: Embedding, vectors_nd: npt.NDArray[np.float16]
    ) -> LeaveOneOut:
        """Return the edges of the query graph, and the scores with each neighbour left out."""
        return await _call_stage("reranker", self._explain, context, (embedding_d, vectors_nd))


_Embed = CallBatcher[Grey, Embedding]
_Rerank = CallBatcher[tuple[Embedding, npt.NDArray[np.float16]], npt.NDArray[np.float32]]
_Explain = CallBatcher[tuple[Embedding, npt.NDArray[np.float16]], LeaveOneOut]
_NearestQuery = tuple[Embedding, int, Scope]


@dataclass(frozen=True)
class _Part:
    """Batched calls to the searchers of one part of the index."""

    search: CallBatcher[_NearestQuery, SearchHits]
    near: CallBatcher[_NearestQuery, ShardHits]
    fetch: CallBatcher[list[int], HitDetails]
    look_up: CallBatcher[str, Embedding]

    @classmethod
    def of(cls, handle: DeploymentHandle, scale: Autoscale) -> _Part:
        return cls(*(_batched(handle, name, scale) for name in ("search", "near", "fetch", "look_up")))


def _batched(handle: DeploymentHandle, name: str, scale: Autoscale) -> CallBatcher[Any, Any]:
    method = getattr(handle, name)  # once, because Serve makes a new handle at each access
    return CallBatcher(lambda contexts, items: method.remote(contexts, items), scale.max_batch_size, scale.max_replicas)


async def _available_results(calls: Sequence[Awaitable[T]]) -> list[T | None]:
    """Return the results in order, with None for an unavailable stage; raise any other error."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    results: list[T | None] = []
    for outcome in outcomes:
        if isinstance(outcome, StageUnavailableError):
            log.warning("a part of the index is left out: %s", outcome)
            results.append(None)
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            results.append(outcome)
    return results


async def _no_result() -> Any:
    return None


async def _call_stage(stage: str, call: CallBatcher[Item, T], context: RequestContext, item: Item) -> T:
    missing: ReleaseNotLoadedError | None = None
    for _ in range(MAX_TRIES):
        try:
            return await _call_replica(stage, call, context, item)
        except ReleaseNotLoadedError as error:
            missing = error
    assert missing is not None
    raise missing


async def _call_replica(stage: str, call: CallBatcher[Item, T], context: RequestContext, item: Item) -> T:
    try:
        async with asyncio.timeout(max(0.0, context.remaining())):
            return await call(context, item)
    except TimeoutError as error:
        raise StageUnavailableError(f"the {stage} did not answer before the deadline") from error
    except CALL_ERRORS as error:
        log.warning("request %s: %s failed", context.trace, stage, exc_info=True)
        raise StageUnavailableError(f"the {stage} is overloaded or down ({type(error).__name__})") from error
