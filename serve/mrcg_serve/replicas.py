"""Embedder, Searcher and Reranker as Serve replicas: batching and a thread around library classes.

The event loop stays free while a batch is computed, so that health checks and new requests get in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from ray import serve

from mrcg.config import Autoscale
from mrcg.encoder.spec import read_spec
from mrcg.errors import require
from mrcg.imaging.slices import Grey
from mrcg.query import Embedding, Scope
from mrcg.release import read_release
from mrcg.search import Found, Influences, RequestContext
from mrcg.store import Store

T = TypeVar("T")
Vectors = npt.NDArray[np.float16]


class _Worker:
    """One thread that computes: models and indexes belong to one thread at a time."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)

    async def run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


class EmbedderReplica:
    """Embeds queries in dynamic batches."""

    def __init__(self, store: str, release: int, settings: Autoscale) -> None:
        import torch

        from mrcg.encoder.embedder import Embedder

        torch.set_num_threads(settings.threads)
        opened = Store(store)
        artefact = opened.artefact("encoders", read_release(opened, release).encoder)
        self._embedder = Embedder.open(artefact, "cuda" if settings.gpus else "cpu")
        self._worker = _Worker()
        _set_batching(self._batch, settings)

    async def embed(self, context: RequestContext, pixels_ss: Grey) -> Embedding:
        """(s, s) grey levels -> (d,)."""
        vector: Embedding = await self._batch(pixels_ss)
        return vector

    @serve.batch
    async def _batch(self, pixels: list[Grey]) -> list[Embedding]:
        return list(await self._worker.run(lambda: self._embedder.embed(np.stack(pixels))))


class SearcherReplica:
    """Finds neighbours in all shards of the index."""

    def __init__(self, store: str, release: int, settings: Autoscale) -> None:
        from mrcg.index.searcher import Searcher

        require("faiss").omp_set_num_threads(settings.threads)
        opened = Store(store)
        self._searcher = Searcher.open(opened, read_release(opened, release).index)
        self._worker = _Worker()
        _set_batching(self._batch, settings)

    async def look_up(self, context: RequestContext, image_id: str) -> Embedding:
        """(d,) stored embedding of an image that the context allows."""
        return await self._worker.run(lambda: self._searcher.look_up(context, image_id))

    async def search(self, context: RequestContext, embedding_d: Embedding, n: int, scope: Scope) -> Found:
        """The n nearest that the context allows and the scope asks for."""
        found: Found = await self._batch(context, embedding_d, n, scope)
        return found

    @serve.batch
    async def _batch(
        self, contexts: list[RequestContext], embeddings: list[Embedding], n: list[int], scopes: list[Scope]
    ) -> list[Found]:
        assert len(set(n)) == 1, "one release has one N"
        return await self._worker.run(lambda: self._searcher.search(np.stack(embeddings), contexts, n[0], scopes))


class RerankerReplica:
    """Scores query graphs in dynamic batches."""

    def __init__(self, store: str, release: int, settings: Autoscale) -> None:
        import torch

        from mrcg.reranker.scorer import Reranking, Scorer

        torch.set_num_threads(settings.threads)
        opened = Store(store)
        pins = read_release(opened, release)
        _, fingerprint = read_spec(opened.artefact("encoders", pins.encoder))
        device = "cuda" if settings.gpus else "cpu"
        self._reranking = Reranking(Scorer.open(opened.artefact("rerankers", pins.reranker), device, fingerprint))
        self._worker = _Worker()
        _set_batching(self._batch, settings)

    async def rerank(self, context: RequestContext, embedding_d: Embedding, vectors_nd: Vectors) -> Embedding:
        """(n,) scores of the neighbours."""
        scores: Embedding = await self._batch(embedding_d, vectors_nd)
        return scores

    async def explain(
        self, context: RequestContext, embedding_d: Embedding, vectors_nd: Vectors, nodes: list[int]
    ) -> Influences:
        """What moved the scores of some of the neighbours."""
        return await self._worker.run(lambda: self._reranking.explain(embedding_d, vectors_nd, nodes))

    @serve.batch
    async def _batch(self, embeddings: list[Embedding], vectors: list[Vectors]) -> list[Embedding]:
        return await self._worker.run(lambda: self._reranking.rerank(np.stack(embeddings), vectors))


def _set_batching(batch: Any, settings: Autoscale) -> None:
    # serve.batch adds these to the method it wraps.
    batch.set_max_batch_size(settings.max_batch_size)
    batch.set_batch_wait_timeout_s(settings.batch_wait_s)
