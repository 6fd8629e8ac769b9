"""Embedder, Searcher and Reranker as Serve replicas: batching and a thread around library classes.

The event loop stays free while a batch is computed, so that health checks and new requests get in. Each replica has the
releases that it can answer under, and takes new ones on in the background; a call names the one that it wants.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from ray import serve

from mrcg.config import Autoscale, ServeSettings
from mrcg.errors import require
from mrcg.gathering import Fetched, Near
from mrcg.imaging.slices import Grey
from mrcg.loading import Embeds, LoadEmbedder, Loading, LoadReranker, LoadSearcher
from mrcg.query import Embedding, Scope
from mrcg.resident import Following, Residents
from mrcg.search import Found, Influences, RequestContext
from mrcg.store import Store
from mrcg_serve import logs
from mrcg_serve.metrics import BatchMeter

if TYPE_CHECKING:
    from mrcg.index.searcher import Searcher
    from mrcg.reranker.scorer import Reranking

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")
Vectors = npt.NDArray[np.float16]
#: Of one search: who asks, the query, how many, and of what.
Asked = tuple[RequestContext, Embedding, int, Scope]


class Pin(BaseModel):
    """``user_config`` of a deployment: the release that is wanted; the current one, whichever it is, where none is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    release: int | None = None


class Worker:
    """One thread that computes: models and indexes belong to one thread at a time."""

    def __init__(self, use_threads: Callable[[], None]) -> None:
        # Libraries count their threads for each thread that calls them.
        self._pool = ThreadPoolExecutor(1, "worker", use_threads)

    async def run(self, work: Callable[[], T]) -> T:
        """The result of some work, in turn."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


class _Replica(Generic[T]):
    """One stage: what it has of each release, the thread that computes, and the one that takes releases on."""

    def __init__(self, store: Store, loading: Loading[T], settings: ServeSettings, use_threads: Callable[[], None]):
        logs.join()
        self._loading = loading
        self._following = Following(store, Residents(loading.key, loading.load, settings.grace_s))
        self._every, self._started = settings.follow_s, False
        self._worker = Worker(use_threads)
        self._meter = BatchMeter()

    def reconfigure(self, config: dict[str, Any]) -> None:
        """Take another release on; the first time, before the replica is ready, load it. Serve calls this."""
        named = Pin.model_validate(config).release
        if self._started:
            self._following.follow(named)  # in the background: who waits here is out of service
        else:
            self._following.start(named)
            self._following.run(self._every)
            self._started = True

    async def releases(self) -> tuple[int, ...]:
        """Those that this replica can answer under."""
        return self._following.residents.numbers

    async def check_health(self) -> None:
        """Answer something under each release that is here. Serve calls this, and replaces a replica that raises."""
        for number in self._following.residents.numbers:
            loaded = self._following.residents.peek(number)
            if loaded is not None:
                await self._worker.run(functools.partial(self._loading.check, loaded))

    def _of(self, context: RequestContext) -> T:
        return self._following.residents.of(context.release)

    async def _together(
        self, loaded: list[T], items: list[Item], work: Callable[[T, list[Item]], Sequence[Result]]
    ) -> list[Result]:
        self._meter.worked(len(items))
        return await self._worker.run(lambda: together(loaded, items, work))


def together(
    loaded: Sequence[T], items: Sequence[Item], work: Callable[[T, list[Item]], Sequence[Result]]
) -> list[Result]:
    """Work on the items of one release at once, whichever releases meet in a batch; results as the items stand."""
    places: dict[int, list[int]] = {}
    for place, one in enumerate(loaded):
        places.setdefault(id(one), []).append(place)
    results: dict[int, Result] = {}
    for some in places.values():
        results.update(zip(some, work(loaded[some[0]], [items[place] for place in some]), strict=True))
    return [results[place] for place in range(len(items))]


class EmbedderReplica(_Replica[Embeds]):
    """Embeds queries in dynamic batches."""

    def __init__(self, store: str, settings: ServeSettings) -> None:
        opened, own = Store(store), settings.embedder
        loading = LoadEmbedder(opened, _device(own), settings.engine, own.threads)
        super().__init__(opened, loading, settings, _torch_threads(own))
        _set_batching(self._batch, own)

    async def embed(self, context: RequestContext, pixels_ss: Grey) -> Embedding:
        """(s, s) grey levels -> (d,)."""
        vector: Embedding = await self._batch(self._of(context), pixels_ss)
        return vector

    @serve.batch
    async def _batch(self, embedders: list[Embeds], pixels: list[Grey]) -> list[Embedding]:
        return await self._together(embedders, pixels, _embed)


def _embed(embedder: Embeds, pixels: list[Grey]) -> list[Embedding]:
    return list(embedder.embed(np.stack(pixels)))


class SearcherReplica(_Replica["Searcher"]):
    """Finds neighbours in all shards of the index, or in one part of them."""

    def __init__(self, store: str, settings: ServeSettings, part: int = 0) -> None:
        opened, own = Store(store), settings.searcher
        faiss = require("faiss")
        loading = LoadSearcher(opened, part, settings.searcher_parts)
        super().__init__(opened, loading, settings, lambda: faiss.omp_set_num_threads(own.threads))
        _set_batching(self._batch, own)
        _set_batching(self._near_batch, own)

    async def look_up(self, context: RequestContext, image_id: str) -> Embedding:
        """(d,) stored embedding of an image that the context allows."""
        searcher = self._of(context)
        return await self._worker.run(lambda: searcher.look_up(context, image_id))

    async def search(self, context: RequestContext, embedding_d: Embedding, n: int, scope: Scope) -> Found:
        """The n nearest that the context allows and the scope asks for."""
        found: Found = await self._batch(self._of(context), (context, embedding_d, n, scope))
        return found

    async def near(self, context: RequestContext, embedding_d: Embedding, n: int, scope: Scope) -> Near:
        """The same as rows and distances: where several parts are searched, all but the nearest are dropped."""
        found: Near = await self._near_batch(self._of(context), (context, embedding_d, n, scope))
        return found

    async def fetch(self, context: RequestContext, rows: list[int]) -> Fetched:
        """All that an answer needs of rows that ``near`` found."""
        searcher = self._of(context)
        return await self._worker.run(lambda: searcher.fetch(rows))

    @serve.batch
    async def _batch(self, searchers: list[Searcher], asked: list[Asked]) -> list[Found]:
        return await self._together(searchers, asked, _search)

    @serve.batch
    async def _near_batch(self, searchers: list[Searcher], asked: list[Asked]) -> list[Near]:
        return await self._together(searchers, asked, _near)


def _search(searcher: Searcher, asked: list[Asked]) -> list[Found]:
    return searcher.search(*_columns(asked))


def _near(searcher: Searcher, asked: list[Asked]) -> list[Near]:
    return searcher.near(*_columns(asked))


def _columns(asked: list[Asked]) -> tuple[Embedding, list[RequestContext], int, list[Scope]]:
    contexts, embeddings, n, scopes = zip(*asked, strict=True)
    assert len(set(n)) == 1, "one release has one N"
    return np.stack(embeddings), list(contexts), n[0], list(scopes)


class RerankerReplica(_Replica["Reranking"]):
    """Scores query graphs in dynamic batches."""

    def __init__(self, store: str, settings: ServeSettings) -> None:
        opened, own = Store(store), settings.reranker
        super().__init__(opened, LoadReranker(opened, _device(own)), settings, _torch_threads(own))
        _set_batching(self._batch, own)

    async def rerank(self, context: RequestContext, embedding_d: Embedding, vectors_nd: Vectors) -> Embedding:
        """(n,) scores of the neighbours."""
        scores: Embedding = await self._batch(self._of(context), (embedding_d, vectors_nd))
        return scores

    async def explain(
        self, context: RequestContext, embedding_d: Embedding, vectors_nd: Vectors, nodes: list[int]
    ) -> Influences:
        """What moved the scores of some of the neighbours."""
        reranking = self._of(context)
        return await self._worker.run(lambda: reranking.explain(embedding_d, vectors_nd, nodes))

    @serve.batch
    async def _batch(self, rerankings: list[Reranking], asked: list[tuple[Embedding, Vectors]]) -> list[Embedding]:
        return await self._together(rerankings, asked, _rerank)


def _rerank(reranking: Reranking, asked: list[tuple[Embedding, Vectors]]) -> list[Embedding]:
    embeddings, vectors = zip(*asked, strict=True)
    return reranking.rerank(np.stack(embeddings), list(vectors))


def _torch_threads(scale: Autoscale) -> Callable[[], None]:
    torch = require("torch")
    return lambda: torch.set_num_threads(scale.threads)


def _device(scale: Autoscale) -> str:
    return "cuda" if scale.gpus else "cpu"


def _set_batching(batch: Any, settings: Autoscale) -> None:
    # serve.batch adds these to the method it wraps.
    batch.set_max_batch_size(settings.max_batch_size)
    batch.set_batch_wait_timeout_s(settings.batch_wait_s)
