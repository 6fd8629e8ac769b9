"""Search in one process, without Ray: for notebooks, the CLI, and tests that compare the service with it."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import numpy as np
import numpy.typing as npt

from mrcg.api.requests import EmbeddingQuery, ImageIdQuery, SearchParams
from mrcg.api.responses import Answer
from mrcg.config.service import ServeSettings
from mrcg.imaging.slices import Grey
from mrcg.releases.release import Release, read_release
from mrcg.reranker.leave_one_out import LeaveOneOut
from mrcg.reranker.scorer import Reranking
from mrcg.retrieval.loaders import AnyEmbedder, EmbedderLoader, RerankerLoader, SearcherLoader, load_and_check
from mrcg.retrieval.preprocessing import QueryRules
from mrcg.retrieval.query import Embedding, PixelQuery, Query, Scope, Subject
from mrcg.retrieval.search import AllowAll, Policy, RequestContext, SearchHits, answer
from mrcg.retrieval.searcher import Searcher
from mrcg.storage.store import Store


class _LocalStages:
    """The stages as direct calls."""

    def __init__(self, embedder: AnyEmbedder, searcher: Searcher, reranking: Reranking) -> None:
        self.embedder = embedder
        self.searcher = searcher
        self.reranking = reranking

    async def embed(self, context: RequestContext, pixels_ss: Grey) -> Embedding:
        embedding: Embedding = self.embedder.embed(pixels_ss[None])[0]
        return embedding

    async def look_up(self, context: RequestContext, image_id: str) -> Embedding:
        return self.searcher.look_up(context, image_id)

    async def search(self, context: RequestContext, embedding_d: Embedding, n: int, scope: Scope) -> SearchHits:
        return self.searcher.search(embedding_d[None], [context], n, [scope])[0]

    async def rerank(
        self, context: RequestContext, embedding_d: Embedding, vectors_nd: npt.NDArray[np.float16]
    ) -> npt.NDArray[np.float32]:
        return self.reranking.rerank(embedding_d[None], [vectors_nd])[0]

    async def explain(
        self, context: RequestContext, embedding_d: Embedding, vectors_nd: npt.NDArray[np.float16]
    ) -> LeaveOneOut:
        return self.reranking.explain(embedding_d, vectors_nd)


class LocalPipeline:
    """A loaded release that answers searches in this process.

    ::

        pipeline = LocalPipeline.open(Store("./store"))
        answer = pipeline.search(Path("scan.png").read_bytes(), SearchParams(k=10))
    """

    def __init__(self, store: Store, release: Release, serve: ServeSettings, policy: Policy) -> None:
        self.release = release
        self._policy = policy
        self._rules = QueryRules.of(store, release, serve)
        self._stages = _LocalStages(
            load_and_check(EmbedderLoader(store, engine=serve.engine, threads=serve.embedder.threads), release),
            load_and_check(SearcherLoader(store), release),
            load_and_check(RerankerLoader(store), release),
        )

    @classmethod
    def open(
        cls,
        store: Store,
        number: int | None = None,
        serve: ServeSettings = ServeSettings(),
        policy: Policy = AllowAll(),
    ) -> LocalPipeline:
        """Load a release, the current one by default; the hash of every file is checked as it is read.

        Args:
            store: that has the release.
            number: of the release; None takes the current one.
            serve: limits, deadline and engine.
            policy: which images of the gallery can be found.

        Raises:
            NotFoundError: the store has no release, or none with this number.
            IntegrityError: a file differs from the published one.
            WeightsError: the reranker was trained on another encoder's embeddings.
            ReleaseError: a loaded part fails its check.
        """
        return cls(store, read_release(store, number), serve, policy)

    def search(self, subject: bytes | ImageIdQuery | EmbeddingQuery, params: SearchParams = SearchParams()) -> Answer:
        """Return the k most similar images of the gallery, best first.

        Args:
            subject: content of an image file, an image of the gallery, or an embedding of the release's encoder.
            params: k, filters, grouping, deadline and other options.

        Raises:
            ImageError: the image cannot be used.
            NotFoundError: the gallery has no such image, or the policy does not allow it.
            FingerprintError: the embedding is from another encoder.
            UsageError: k is out of range, or the embedding has the wrong width or is not finite.
        """
        self._rules.check_k(params.k)
        context = self._rules.context("local", self._policy, params.deadline_ms)
        query = Query.of(self._subject(subject), params)
        return _run_sync(answer(self._stages, self._rules.search, context, query))

    def _subject(self, subject: bytes | ImageIdQuery | EmbeddingQuery) -> Subject:
        match subject:
            case ImageIdQuery():
                return subject
            case EmbeddingQuery():
                return self._rules.vector_query(subject)
            case _:
                return PixelQuery(self._rules.prepare(subject))


def _run_sync(search: Coroutine[Any, Any, Answer]) -> Answer:
    # The local stages never wait, so no event loop is needed. This also works in a notebook, where one is running.
    try:
        search.send(None)
    except StopIteration as done:
        result: Answer = done.value
        return result
    raise AssertionError("a local stage waited")
