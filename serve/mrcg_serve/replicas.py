"""Embedder, Searcher and Reranker as Serve replicas: batching and a thread around library classes.

The event loop stays free while a batch is computed, so that health checks and new requests get in. Each replica has the
releases that it can answer under, and takes new ones on in the background; a call names the one that it wants.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from ray import serve

from mrcg.config.settings import Autoscale, ServeSettings
from mrcg.errors import MrcgError, NotFoundError, require
from mrcg.imaging.slices import Grey
from mrcg.releases.release import Release
from mrcg.reranker.influence import Influences
from mrcg.retrieval.hot_swap import ReleaseCache, ReleaseNotLoadedError, ReleaseWatcher
from mrcg.retrieval.loaders import Embeds, LoadEmbedder, Loading, LoadReranker, LoadSearcher
from mrcg.retrieval.merge import HitDetails, ShardHits
from mrcg.retrieval.query import Embedding, Scope
from mrcg.retrieval.search import RequestContext, SearchHits
from mrcg.storage.store import Store
from mrcg_serve.observability import logs
from mrcg_serve.observability.metrics import BatchMeter

if TYPE_CHECKING:
    from mrcg.reranker.scorer import Reranking
    from mrcg.retrieval.searcher import Searcher

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")
Vectors = npt.NDArray[np.float16]
#: Of one search: the query, how many, and of what; and who asks.
Asked = tuple[Embedding, int, Scope]
Search = tuple[RequestContext, Asked]
#: A query and the vectors of its neighbours.
Graph = tuple[Embedding, Vectors]
#: What a call has for each of its items.
Outcome: TypeAlias = "Result | MrcgError"


class Pin(BaseModel):
    """``user_config`` of a deployment: the release that is wanted; the current one, whichever it is, where none is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    release: int | None = None


def _items(calls: list[list[Any]]) -> int:
    return sum(len(call) for call in calls)


class Worker:
    """One thread that computes: models and indexes belong to one thread at a time."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "worker")

    async def run(self, work: Callable[[], T]) -> T:
        """The result of some work, in turn."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def wait(self, work: Callable[[], T]) -> T:
        """The same in a thread that may wait."""
        return self._pool.submit(work).result()


class _Replica(Generic[T]):
    """One stage: what it has of each release, the thread that computes, and the one that takes releases on.

    Args:
        store: whose releases are answered under.
        loading: how the stage loads its part of one.
        settings: of the service.
        scale: of this stage.
        use_threads: how many a library computes with in the thread that calls it.
    """

    def __init__(
        self,
        store: Store,
        loading: Loading[T],
        settings: ServeSettings,
        scale: Autoscale,
        use_threads: Callable[[int], None],
    ) -> None:
        logs.join()
        self._loading = loading
        self._following = ReleaseWatcher(store, ReleaseCache(loading.key, self._load_and_check, settings.grace_s))
        self._every, self._started = settings.follow_s, False
        self._threads, self._use_threads = scale.threads, use_threads
        self._worker = Worker()
        self._meter = BatchMeter()

    def _load_and_check(self, release: Release) -> T:
        # OpenMP keeps a team for each thread that ever computed with several; with two such teams, more than there
        # are cores, waiting in both becomes four times as slow. So only the worker has one.
        self._use_threads(1)
        loaded = self._loading.load(release)
        self._worker.wait(functools.partial(self._try, loaded))
        return loaded

    def _try(self, loaded: T) -> None:
        self._use_threads(self._threads)
        self._loading.check(loaded)

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

    async def _each(
        self,
        contexts: Sequence[RequestContext],
        items: Sequence[Item],
        batch: Callable[[list[tuple[T, Item]]], Awaitable[Sequence[Outcome[Result]]]],
    ) -> list[Outcome[Result]]:
        """Results as the items stand; an error in place of those whose release is not here."""
        outcomes: list[Outcome[Result] | None] = [None] * len(items)
        places, pairs = list[int](), list[tuple[T, Item]]()
        for place, (context, item) in enumerate(zip(contexts, items, strict=True)):
            try:
                pairs.append((self._following.residents.of(context.release), item))
                places.append(place)
            except ReleaseNotLoadedError as error:
                outcomes[place] = error
        if pairs:
            for place, outcome in zip(places, await batch(pairs), strict=True):
                outcomes[place] = outcome
        return outcomes  # type: ignore[return-value]  # none is missing

    def _alone(
        self, work: Callable[[T, list[Item]], Sequence[Outcome[Result]]]
    ) -> Callable[[list[tuple[T, Item]]], Awaitable[list[Outcome[Result]]]]:
        """A batch of its own for each call: what is asked seldom, or is quick."""
        return lambda pairs: self._worker.run(lambda: together(pairs, work))

    async def _together(
        self,
        calls: Sequence[Sequence[tuple[T, Item]]],
        work: Callable[[T, list[Item]], Sequence[Outcome[Result]]],
    ) -> list[list[Outcome[Result]]]:
        """Work on all calls that are waiting; results call by call."""
        pairs = [pair for call in calls for pair in call]
        self._meter.worked(len(pairs))
        results = iter(await self._worker.run(lambda: together(pairs, work)))
        return [list(itertools.islice(results, len(call))) for call in calls]


def together(
    pairs: Sequence[tuple[T, Item]], work: Callable[[T, list[Item]], Sequence[Outcome[Result]]]
) -> list[Outcome[Result]]:
    """Work on the items of one release at once, whichever releases meet in a batch; results as the items stand."""
    places: dict[int, list[int]] = {}
    for place, (loaded, _) in enumerate(pairs):
        places.setdefault(id(loaded), []).append(place)
    results: dict[int, Outcome[Result]] = {}
    for some in places.values():
        results.update(zip(some, work(pairs[some[0]][0], [pairs[place][1] for place in some]), strict=True))
    return [results[place] for place in range(len(pairs))]


class EmbedderReplica(_Replica[Embeds]):
    """Embeds queries in dynamic batches."""

    def __init__(self, store: str, settings: ServeSettings) -> None:
        opened, own = Store(store), settings.embedder
        loading = LoadEmbedder(opened, _device(own), settings.engine, own.threads)
        super().__init__(opened, loading, settings, own, require("torch").set_num_threads)
        _set_batching(self._batch, own)

    async def embed(self, contexts: list[RequestContext], pixels: list[Grey]) -> list[Outcome[Embedding]]:
        """(s, s) grey levels each -> (d,) each."""
        return await self._each(contexts, pixels, self._batch)

    @serve.batch(batch_size_fn=_items)
    async def _batch(self, calls: list[list[tuple[Embeds, Grey]]]) -> list[list[Outcome[Embedding]]]:
        return await self._together(calls, _embed)


def _embed(embedder: Embeds, pixels: list[Grey]) -> list[Embedding]:
    return list(embedder.embed(np.stack(pixels)))


class SearcherReplica(_Replica["Searcher"]):
    """Finds neighbours in all shards of the index, or in one part of them."""

    def __init__(self, store: str, settings: ServeSettings, part: int = 0) -> None:
        opened, own = Store(store), settings.searcher
        loading = LoadSearcher(opened, part, settings.searcher_parts)
        super().__init__(opened, loading, settings, own, require("faiss").omp_set_num_threads)
        _set_batching(self._batch, own)
        _set_batching(self._near_batch, own)

    async def look_up(self, contexts: list[RequestContext], image_ids: list[str]) -> list[Outcome[Embedding]]:
        """(d,) stored embedding each of images that the contexts allow; NotFoundError where there is none."""
        return await self._each(contexts, list(zip(contexts, image_ids, strict=True)), self._alone(_look_up))

    async def search(self, contexts: list[RequestContext], asked: list[Asked]) -> list[Outcome[SearchHits]]:
        """The n nearest that each context allows and each scope asks for."""
        return await self._each(contexts, list(zip(contexts, asked, strict=True)), self._batch)

    async def near(self, contexts: list[RequestContext], asked: list[Asked]) -> list[Outcome[ShardHits]]:
        """The same as rows and distances: where several parts are searched, all but the nearest are dropped."""
        return await self._each(contexts, list(zip(contexts, asked, strict=True)), self._near_batch)

    async def fetch(self, contexts: list[RequestContext], rows: list[list[int]]) -> list[Outcome[HitDetails]]:
        """All that answers need of rows that ``near`` found."""
        return await self._each(contexts, rows, self._alone(_fetch))

    @serve.batch(batch_size_fn=_items)
    async def _batch(self, calls: list[list[tuple[Searcher, Search]]]) -> list[list[Outcome[SearchHits]]]:
        return await self._together(calls, _search)

    @serve.batch(batch_size_fn=_items)
    async def _near_batch(self, calls: list[list[tuple[Searcher, Search]]]) -> list[list[Outcome[ShardHits]]]:
        return await self._together(calls, _near)


def _search(searcher: Searcher, asked: list[Search]) -> list[SearchHits]:
    return searcher.search(*_columns(asked))


def _near(searcher: Searcher, asked: list[Search]) -> list[ShardHits]:
    return searcher.near(*_columns(asked))


def _columns(asked: list[Search]) -> tuple[Embedding, list[RequestContext], int, list[Scope]]:
    contexts = [context for context, _ in asked]
    embeddings, n, scopes = zip(*(one for _, one in asked), strict=True)
    assert len(set(n)) == 1, "one release has one N"
    return np.stack(embeddings), contexts, n[0], list(scopes)


def _fetch(searcher: Searcher, rows: list[list[int]]) -> list[HitDetails]:
    return [searcher.fetch(one) for one in rows]


def _look_up(searcher: Searcher, asked: list[tuple[RequestContext, str]]) -> list[Outcome[Embedding]]:
    found: list[Outcome[Embedding]] = []
    for context, image_id in asked:
        try:
            found.append(searcher.look_up(context, image_id))
        except NotFoundError as error:
            found.append(error)
    return found


class RerankerReplica(_Replica["Reranking"]):
    """Scores query graphs in dynamic batches."""

    def __init__(self, store: str, settings: ServeSettings) -> None:
        opened, own = Store(store), settings.reranker
        loading = LoadReranker(opened, _device(own))
        super().__init__(opened, loading, settings, own, require("torch").set_num_threads)
        _set_batching(self._batch, own)

    async def rerank(self, contexts: list[RequestContext], graphs: list[Graph]) -> list[Outcome[Embedding]]:
        """(n,) scores of the neighbours of each."""
        return await self._each(contexts, graphs, self._batch)

    async def explain(
        self, contexts: list[RequestContext], asked: list[tuple[Embedding, Vectors, list[int]]]
    ) -> list[Outcome[Influences]]:
        """What moved the scores of some of the neighbours of each."""
        return await self._each(contexts, asked, self._alone(_explain))

    @serve.batch(batch_size_fn=_items)
    async def _batch(self, calls: list[list[tuple[Reranking, Graph]]]) -> list[list[Outcome[Embedding]]]:
        return await self._together(calls, _rerank)


def _rerank(reranking: Reranking, graphs: list[Graph]) -> list[Embedding]:
    embeddings, vectors = zip(*graphs, strict=True)
    return reranking.rerank(np.stack(embeddings), list(vectors))


def _explain(reranking: Reranking, asked: list[tuple[Embedding, Vectors, list[int]]]) -> list[Influences]:
    return [reranking.explain(*one) for one in asked]


def _device(scale: Autoscale) -> str:
    return "cuda" if scale.gpus else "cpu"


def _set_batching(batch: Any, settings: Autoscale) -> None:
    # serve.batch adds these to the method it wraps.
    batch.set_max_batch_size(settings.max_batch_size)
    batch.set_batch_wait_timeout_s(settings.batch_wait_s)
