"""The whole search in one process, without Ray: for notebooks, the CLI and as the service's twin."""

from __future__ import annotations

import time
import uuid
from collections.abc import Coroutine
from typing import Any

import numpy as np
import numpy.typing as npt

from mrcg.config import IngestSettings, ServeSettings
from mrcg.encoder.embedder import Embedder
from mrcg.errors import UsageError
from mrcg.imaging.decode import Grey, Limits, decode, resize
from mrcg.index.sharded import ShardedIndex
from mrcg.release import Release, read_release
from mrcg.reranker.scorer import Scorer
from mrcg.search import AllowAll, Answer, Found, Policy, RequestContext, SearchSettings, answer
from mrcg.store import Store


class Searcher:
    """Finds neighbours with all that an answer needs of them."""

    def __init__(self, index: ShardedIndex) -> None:
        self.index = index

    def search(self, embeddings_bd: npt.NDArray[np.float32], contexts: list[RequestContext], n: int) -> list[Found]:
        """The n nearest that each context allows; one index search for each distinct allowed set."""
        found: list[Found | None] = [None] * len(contexts)
        for which in _by_allowed(contexts):
            allowed = contexts[which[0]].allowed
            near = self.index.search(embeddings_bd[which], n, allowed)
            for place, rows, distances in zip(which, near.rows_qk, near.distances_qk, strict=True):
                real = rows[rows >= 0]
                found[place] = Found(
                    image_ids=[self.index.image_ids[row] for row in real.tolist()],
                    labels=[self.index.labels[row] for row in real.tolist()],
                    distances=distances[: len(real)].tolist(),
                    vectors_nd=self.index.vectors(real),
                )
        return [one for one in found if one is not None]


def _by_allowed(contexts: list[RequestContext]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for place, context in enumerate(contexts):
        groups.setdefault(id(context.allowed), []).append(place)
    return list(groups.values())


class Reranking:
    """Scores the neighbours of several queries at once, padded to one length."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def rerank(
        self, embeddings_bd: npt.NDArray[np.float32], neighbours: list[npt.NDArray[np.float16]]
    ) -> list[npt.NDArray[np.float32]]:
        """(b, d) queries and b arrays (n_i, d) -> b arrays (n_i,) of scores in [0, 1]."""
        longest = max(len(vectors) for vectors in neighbours)
        padded = np.zeros((len(neighbours), longest, embeddings_bd.shape[1]), dtype=np.float16)
        mask = np.zeros((len(neighbours), longest), dtype=bool)
        for place, vectors in enumerate(neighbours):
            padded[place, : len(vectors)] = vectors
            mask[place, : len(vectors)] = True
        scores = self.scorer.score(embeddings_bd, padded, mask)
        return [row[: len(vectors)] for row, vectors in zip(scores, neighbours, strict=True)]


class _LocalStages:
    """The stages as plain calls."""

    def __init__(self, embedder: Embedder, searcher: Searcher, reranking: Reranking) -> None:
        self.embedder = embedder
        self.searcher = searcher
        self.reranking = reranking

    async def embed(self, context: RequestContext, pixels_ss: Grey) -> npt.NDArray[np.float32]:
        return self.embedder.embed(pixels_ss[None])[0]

    async def search(self, context: RequestContext, embedding_d: npt.NDArray[np.float32], n: int) -> Found:
        return self.searcher.search(embedding_d[None], [context], n)[0]

    async def rerank(
        self, context: RequestContext, embedding_d: npt.NDArray[np.float32], vectors_nd: npt.NDArray[np.float16]
    ) -> npt.NDArray[np.float32]:
        return self.reranking.rerank(embedding_d[None], [vectors_nd])[0]


def query_limits(store: Store, release: Release, serve: ServeSettings) -> Limits:
    """What a query image may be; it is normalised as the release's corpus was."""
    ingest = IngestSettings.model_validate(store.manifest("corpus", release.corpus).settings["ingest"])
    return Limits(serve.max_upload_bytes, ingest.max_pixels, ingest.min_side, ingest.max_side)


def check_k(k: int, neighbours: int) -> None:
    """Whether k hits can be asked for.

    Raises:
        UsageError: names the limits.
    """
    if not 1 <= k <= neighbours:
        raise UsageError(f"k = {k}: ask for 1 to {neighbours} hits (graph.neighbours)")


class LocalPipeline:
    """A release, loaded and ready to answer.

    ::

        pipeline = LocalPipeline.open(Store("./store"))
        answer = pipeline.search(Path("scan.png").read_bytes(), k=10)
    """

    def __init__(self, store: Store, release: Release, serve: ServeSettings) -> None:
        self.release = release
        self.policy: Policy = AllowAll()
        self._embedder = Embedder.open(store.artefact("encoders", release.encoder))
        self._limits = query_limits(store, release, serve)
        self._serve = serve
        index = ShardedIndex.open(store.artefact("indexes", release.index))
        scorer = Scorer.open(store.artefact("rerankers", release.reranker))
        self._stages = _LocalStages(self._embedder, Searcher(index), Reranking(scorer))
        self._settings = search_settings(release, serve)

    @classmethod
    def open(cls, store: Store, number: int | None = None, serve: ServeSettings = ServeSettings()) -> LocalPipeline:
        """Load a release, the current one by default; every file is hashed as it is read.

        Raises:
            NotFoundError: there is no such release.
            IntegrityError: a file is not the one that was published.
        """
        return cls(store, read_release(store, number), serve)

    def search(self, image: bytes, k: int = 10, rerank: bool = True) -> Answer:
        """The k most similar images of the gallery, best first.

        Args:
            image: content of an image file.
            k: hits wanted, at most ``graph.neighbours``.
            rerank: False answers in the index's order.

        Raises:
            ImageError: the image cannot be used.
            UsageError: k is out of range.
        """
        check_k(k, self._settings.neighbours)
        pixels = resize(decode(image, self._limits), self._embedder.input_size)
        context = RequestContext(
            principal="local",
            allowed=self.policy.allowed("local"),
            deadline=time.time() + self._serve.deadline_ms / 1000,
            release=self.release.number,
            trace=uuid.uuid4().hex,
        )
        return _finish(answer(self._stages, self._settings, context, pixels, k, rerank))


def search_settings(release: Release, serve: ServeSettings) -> SearchSettings:
    """What every search under a release has in common."""
    return SearchSettings(release.neighbours, release.ood_threshold, serve.rerank_reserve_ms)


def _finish(call: Coroutine[Any, Any, Answer]) -> Answer:
    # The local stages never wait, so no event loop is needed: this works inside a notebook's, too.
    try:
        call.send(None)
    except StopIteration as done:
        assert isinstance(done.value, Answer)
        return done.value
    raise AssertionError("a local stage waited")
