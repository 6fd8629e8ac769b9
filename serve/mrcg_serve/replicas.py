"""Embedder, Searcher and Reranker as Serve replicas: batching and a worker thread around library classes.

The event loop stays free while a batch is computed, so health checks and new requests are handled meanwhile. Each
replica holds the releases that it can answer from and loads new ones in the background; each request names its release.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import numpy as np
from ray import serve

from mrcg.arrays import Fp16Vectors
from mrcg.config.service import Autoscale, ServeSettings
from mrcg.errors import MrcgError, NotFoundError, ReleaseNotLoadedError, require
from mrcg.frozen import Frozen
from mrcg.imaging.slices import Grey
from mrcg.releases.release import Release
from mrcg.reranker.leave_one_out import LeaveOneOut
from mrcg.retrieval.hot_swap import ReleaseCache, ReleaseWatcher
from mrcg.retrieval.loaders import AnyEmbedder, EmbedderLoader, Loader, RerankerLoader, SearcherLoader
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
#: Arguments of one search: the query embedding, the number of neighbours, and the scope.
NearestQuery = tuple[Embedding, int, Scope]
#: The same with the context of the request.
Search = tuple[RequestContext, NearestQuery]
#: A query embedding and the vectors of its neighbours.
Graph = tuple[Embedding, Fp16Vectors]
#: What a call returns for each of its items.
Outcome: TypeAlias = "Result | MrcgError"


class Pin(Frozen):
    """``user_config`` of a deployment: the release to answer from, or None to follow the current one."""

    release: int | None = None


def _count_items(calls: list[list[Any]]) -> int:
    return sum(len(call) for call in calls)


class Worker:
    """A single thread for all computation: a model or an index must be used by one thread at a time."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "worker")

    async def run(self, work: Callable[[], T]) -> T:
        """Run some work after the work that is already queued; return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def wait(self, work: Callable[[], T]) -> T:
        """Do the same from another thread, which blocks until the work is done."""
        return self._pool.submit(work).result()


class _Replica(Generic[T]):
    """One stage: its loaded releases, the worker thread that computes, and a thread that loads new releases.

    Args:
        store: whose releases are used.
        loader: how the stage loads its part of a release.
        settings: of the service.
        scale: settings of this stage's deployment.
        set_threads: sets the number of compute threads that a library uses in the calling thread.
    """

    def __init__(
        self,
        store: Store,
        loader: Loader[T],
        settings: ServeSettings,
        scale: Autoscale,
        set_threads: Callable[[int], None],
    ) -> None:
        logs.use_serve_handlers()
        self._loader = loader
        self._watcher = ReleaseWatcher(store, ReleaseCache(loader.key, self._load_and_check, settings.grace_s))
        self._poll_s, self._started = settings.follow_s, False
        self._threads, self._set_threads = scale.threads, set_threads
        self._worker = Worker()
        self._meter = BatchMeter()

    def _load_and_check(self, release: Release) -> T:
        # OpenMP keeps a team of threads for each thread that ever computed with several. Two such teams have more
        # threads than there are cores, and waiting in both becomes four times as slow. So only the worker has a team.
        self._set_threads(1)
        loaded = self._loader.load(release)
        self._worker.wait(functools.partial(self._check, loaded))
        return loaded

    def _check(self, loaded: T) -> None:
        self._set_threads(self._threads)
        self._loader.check(loaded)

    def reconfigure(self, config: dict[str, Any]) -> None:
        """Change the release to follow. Serve calls this; the first call loads it before the replica is ready."""
        number = Pin.model_validate(config).release
        if self._started:
            # The watcher loads in the background: Serve sends no requests to a replica while this method runs.
            self._watcher.follow(number)
        else:
            self._watcher.start(number)
            self._watcher.run(self._poll_s)
            self._started = True

    async def releases(self) -> tuple[int, ...]:
        """Return the numbers of the releases that this replica has loaded."""
        return self._watcher.cache.numbers

    async def check_health(self) -> None:
        """Run the check of each loaded release. Serve calls this, and replaces a replica that raises."""
        for number in self._watcher.cache.numbers:
            loaded = self._watcher.cache.peek(number)
            if loaded is not None:
                await self._worker.run(functools.partial(self._loader.check, loaded))

    async def _run_loaded(
        self,
        contexts: Sequence[RequestContext],
        items: Sequence[Item],
        run_batch: Callable[[list[tuple[T, Item]]], Awaitable[Sequence[Outcome[Result]]]],
    ) -> list[Outcome[Result]]:
        """Run a batch; return results in the order of the items, with an error if an item's release is not loaded."""
        outcomes: list[Outcome[Result] | None] = [None] * len(items)
        places, pairs = list[int](), list[tuple[T, Item]]()
        for place, (context, item) in enumerate(zip(contexts, items, strict=True)):
            try:
                pairs.append((self._watcher.cache.get(context.release), item))
                places.append(place)
            except ReleaseNotLoadedError as error:
                outcomes[place] = error
        if pairs:
            for place, outcome in zip(places, await run_batch(pairs), strict=True):
                outcomes[place] = outcome
        return outcomes  # type: ignore[return-value]  # every place is filled

    def _unbatched(
        self, work: Callable[[T, list[Item]], Sequence[Outcome[Result]]]
    ) -> Callable[[list[tuple[T, Item]]], Awaitable[list[Outcome[Result]]]]:
        """Return a function that runs each call by itself, for work that is rare or quick."""
        return lambda pairs: self._worker.run(lambda: run_by_release(pairs, work))

    async def _run_batch(
        self,
        calls: Sequence[Sequence[tuple[T, Item]]],
        work: Callable[[T, list[Item]], Sequence[Outcome[Result]]],
    ) -> list[list[Outcome[Result]]]:
        """Run the work for all waiting calls together; return the results of each call."""
        pairs = [pair for call in calls for pair in call]
        self._meter.count_batch(len(pairs))
        results = iter(await self._worker.run(lambda: run_by_release(pairs, work)))
        return [list(itertools.islice(results, len(call))) for call in calls]


def run_by_release(
    pairs: Sequence[tuple[T, Item]], work: Callable[[T, list[Item]], Sequence[Outcome[Result]]]
) -> list[Outcome[Result]]:
    """Run the work once for each loaded release in a batch; return results in the order of the items."""
    places: dict[int, list[int]] = {}
    for place, (loaded, _) in enumerate(pairs):
        places.setdefault(id(loaded), []).append(place)
    results: dict[int, Outcome[Result]] = {}
    for same_release in places.values():
        loaded = pairs[same_release[0]][0]
        outcomes = work(loaded, [pairs[place][1] for place in same_release])
        results.update(zip(same_release, outcomes, strict=True))
    return [results[place] for place in range(len(pairs))]


class EmbedderReplica(_Replica[AnyEmbedder]):
    """Embeds queries in dynamic batches."""

    def __init__(self, store: str, settings: ServeSettings) -> None:
        opened, scale = Store(store), settings.embedder
        loader = EmbedderLoader(opened, _device(scale), settings.engine, scale.threads)
        super().__init__(opened, loader, settings, scale, require("torch").set_num_threads)
        _set_batching(self._batch, scale)

    async def embed(self, contexts: list[RequestContext], pixels: list[Grey]) -> list[Outcome[Embedding]]:
        """Embed queries: (s, s) grey levels each -> (d,) each."""
        return await self._run_loaded(contexts, pixels, self._batch)

    @serve.batch(batch_size_fn=_count_items)
    async def _batch(self, calls: list[list[tuple[AnyEmbedder, Grey]]]) -> list[list[Outcome[Embedding]]]:
        return await self._run_batch(calls, _embed)


def _embed(embedder: AnyEmbedder, pixels: list[Grey]) -> list[Embedding]:
    return list(embedder.embed(np.stack(pixels)))


class SearcherReplica(_Replica["Searcher"]):
    """Finds neighbours in all shards of the index, or in one of several parts of the shards."""

    def __init__(self, store: str, settings: ServeSettings, part: int = 0) -> None:
        opened, scale = Store(store), settings.searcher
        loader = SearcherLoader(opened, part, settings.searcher_parts)
        super().__init__(opened, loader, settings, scale, require("faiss").omp_set_num_threads)
        _set_batching(self._batch, scale)
        _set_batching(self._near_batch, scale)

    async def look_up(self, contexts: list[RequestContext], image_ids: list[str]) -> list[Outcome[Embedding]]:
        """Return the (d,) stored embedding of each image that its context allows; NotFoundError for any other."""
        return await self._run_loaded(contexts, list(zip(contexts, image_ids, strict=True)), self._unbatched(_look_up))

    async def search(self, contexts: list[RequestContext], queries: list[NearestQuery]) -> list[Outcome[SearchHits]]:
        """Return for each query the n nearest images that its context allows and that are in its scope."""
        return await self._run_loaded(contexts, list(zip(contexts, queries, strict=True)), self._batch)

    async def near(self, contexts: list[RequestContext], queries: list[NearestQuery]) -> list[Outcome[ShardHits]]:
        """Do the same, but return only rows and distances: with several parts, most of the hits are dropped."""
        return await self._run_loaded(contexts, list(zip(contexts, queries, strict=True)), self._near_batch)

    async def fetch(self, contexts: list[RequestContext], rows: list[list[int]]) -> list[Outcome[HitDetails]]:
        """Return everything that an answer needs for rows that ``near`` returned."""
        return await self._run_loaded(contexts, rows, self._unbatched(_fetch))

    @serve.batch(batch_size_fn=_count_items)
    async def _batch(self, calls: list[list[tuple[Searcher, Search]]]) -> list[list[Outcome[SearchHits]]]:
        return await self._run_batch(calls, _search)

    @serve.batch(batch_size_fn=_count_items)
    async def _near_batch(self, calls: list[list[tuple[Searcher, Search]]]) -> list[list[Outcome[ShardHits]]]:
        return await self._run_batch(calls, _near)


def _search(searcher: Searcher, searches: list[Search]) -> list[SearchHits]:
    return searcher.search(*_columns(searches))


def _near(searcher: Searcher, searches: list[Search]) -> list[ShardHits]:
    return searcher.near(*_columns(searches))


def _columns(searches: list[Search]) -> tuple[Embedding, list[RequestContext], int, list[Scope]]:
    contexts = [context for context, _ in searches]
    embeddings, n, scopes = zip(*(query for _, query in searches), strict=True)
    assert len(set(n)) == 1, "all searches of a release have the same N"
    return np.stack(embeddings), contexts, n[0], list(scopes)


def _fetch(searcher: Searcher, rows: list[list[int]]) -> list[HitDetails]:
    return [searcher.fetch(item_rows) for item_rows in rows]


def _look_up(searcher: Searcher, images: list[tuple[RequestContext, str]]) -> list[Outcome[Embedding]]:
    outcomes: list[Outcome[Embedding]] = []
    for context, image_id in images:
        try:
            outcomes.append(searcher.look_up(context, image_id))
        except NotFoundError as error:
            outcomes.append(error)
    return outcomes


class RerankerReplica(_Replica["Reranking"]):
    """Scores query graphs in dynamic batches."""

    def __init__(self, store: str, settings: ServeSettings) -> None:
        opened, scale = Store(store), settings.reranker
        loader = RerankerLoader(opened, _device(scale))
        super().__init__(opened, loader, settings, scale, require("torch").set_num_threads)
        _set_batching(self._batch, scale)

    async def rerank(self, contexts: list[RequestContext], graphs: list[Graph]) -> list[Outcome[Embedding]]:
        """Return the (n,) scores of the neighbours in each graph."""
        return await self._run_loaded(contexts, graphs, self._batch)

    async def explain(self, contexts: list[RequestContext], graphs: list[Graph]) -> list[Outcome[LeaveOneOut]]:
        """Return the edges of each graph, and its scores with each neighbour left out."""
        return await self._run_loaded(contexts, graphs, self._unbatched(_explain))

    @serve.batch(batch_size_fn=_count_items)
    async def _batch(self, calls: list[list[tuple[Reranking, Graph]]]) -> list[list[Outcome[Embedding]]]:
        return await self._run_batch(calls, _rerank)


def _rerank(reranking: Reranking, graphs: list[Graph]) -> list[Embedding]:
    embeddings, vectors = zip(*graphs, strict=True)
    return reranking.rerank(np.stack(embeddings), list(vectors))


def _explain(reranking: Reranking, graphs: list[Graph]) -> list[LeaveOneOut]:
    return [reranking.explain(*graph) for graph in graphs]


def _device(scale: Autoscale) -> str:
    return "cuda" if scale.gpus else "cpu"


def _set_batching(batch: Any, settings: Autoscale) -> None:
    # serve.batch adds these setters to the method that it wraps.
    batch.set_max_batch_size(settings.max_batch_size)
    batch.set_batch_wait_timeout_s(settings.batch_wait_s)
