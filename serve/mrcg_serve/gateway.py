"""The gateway's work: checked pixels on, answers out. Its routes are in ``mrcg_serve.api``."""

from __future__ import annotations

import asyncio
import io
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from PIL import Image
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from ray.serve.handle import DeploymentHandle

from mrcg.answers import Answer
from mrcg.config import ServeSettings
from mrcg.corpus import Corpus
from mrcg.errors import MrcgError
from mrcg.index.metric import Mask
from mrcg.query import ByImage, ByPixels, Query, Sent, Subject, Wanted
from mrcg.release import read_release
from mrcg.search import AllowAll, Policy, answer
from mrcg.serving import QueryRules
from mrcg.store import Store
from mrcg.tombstones import Tombstones
from mrcg_serve.access import Authenticator, LoopbackOnly
from mrcg_serve.problems import problem_of
from mrcg_serve.stages import RemoteStages

PREVIEW_SIDE = 256
CHECK_SECONDS = 5.0


class Metrics:
    """Counters of one gateway replica."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("mrcg_requests", "Searches by outcome.", ["outcome"], registry=self.registry)
        self.seconds = Histogram(
            "mrcg_stage_seconds", "Time of each stage of a search.", ["stage"], registry=self.registry,
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
        )  # fmt: skip

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)

    def refused(self, code: str) -> None:
        """Count a search that was refused, by the code of its problem."""
        self.requests.labels(code).inc()

    def count(self, result: Answer) -> None:
        """Count an answered search."""
        self.requests.labels("reranked" if result.reranked else "ann_order").inc()
        for stage, milliseconds in result.milliseconds.items():
            self.seconds.labels(stage).observe(milliseconds / 1000)


class Gateway:
    """Takes searches in under one release. Collaborators are injected: who may come, what they may find."""

    def __init__(
        self,
        store: str,
        release: int,
        settings: ServeSettings,
        stages: tuple[DeploymentHandle, DeploymentHandle, DeploymentHandle],
        policy: Policy = AllowAll(),
        authenticator: Authenticator = LoopbackOnly(),
    ) -> None:
        opened = Store(store)
        pinned = read_release(opened, release)
        self.rules = QueryRules.of(opened, pinned, settings)
        self._corpus = Corpus(opened.artefact("corpus", pinned.corpus))
        self._tombstones = Tombstones(opened)
        self._stages = RemoteStages(*stages)
        self._policy = policy
        self.authenticator = authenticator
        self._pool = ThreadPoolExecutor(settings.gateway.threads)
        self.metrics = Metrics()
        self.max_upload_bytes = settings.max_upload_bytes

    async def search(self, principal: str, subject: bytes | ByImage | Sent, wanted: Wanted) -> Answer:
        """The k most similar images of the gallery, best first.

        Args:
            principal: who asks.
            subject: content of an image file, an image of the gallery, or an embedding.
            wanted: what is asked of it.

        Raises:
            UsageError: k is out of range, or the embedding has another width.
            FingerprintError: the embedding is of another encoder.
            ImageError: the image cannot be used.
            NotFoundError: the gallery has no such image, or not for this caller.
            StageUnavailableError: the embedder or the searcher cannot answer.
        """
        try:
            return await self._search(principal, subject, wanted)
        except MrcgError as error:
            self.metrics.refused(problem_of(error).code)
            raise

    async def _search(self, principal: str, subject: bytes | ByImage | Sent, wanted: Wanted) -> Answer:
        start = time.perf_counter()
        self.rules.check_k(wanted.k)
        # The deadline counts from here: decoding is a part of what the caller waits for.
        context = self.rules.context(principal, self._policy, wanted.deadline_ms)
        query = Query.of(await self._subject(subject), wanted)
        decode = _milliseconds_since(start)
        result = await answer(self._stages, self.rules.search, context, query)
        laps = {"decode": decode, **result.milliseconds, "total": _milliseconds_since(start)}
        result = result.model_copy(update={"milliseconds": laps})
        self.metrics.count(result)
        return result

    async def _subject(self, subject: bytes | ByImage | Sent) -> Subject:
        match subject:
            case ByImage():
                return subject
            case Sent():
                return self.rules.by_embedding(subject)
            case _:
                loop = asyncio.get_running_loop()
                return ByPixels(await loop.run_in_executor(self._pool, self.rules.prepare, subject))

    async def preview(self, principal: str, image_id: str) -> bytes:
        """PNG of a gallery image that the caller may find, at most 256 pixels on the longer side.

        Raises:
            NotFoundError: there is no such image, or not for this caller: both read alike.
        """
        allowed = self._policy.allowed(principal)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._preview, image_id, allowed)

    def _preview(self, image_id: str, allowed: Mask | None) -> bytes:
        row = self._corpus.row_of(image_id)
        self._tombstones.look()
        if (allowed is not None and not allowed[row]) or self._tombstones.forbidden([image_id]):
            raise self._corpus.unknown(image_id)
        image = Image.fromarray(self._corpus.image(image_id))
        image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        image.save(out, "PNG")
        return out.getvalue()

    async def check(self) -> None:
        """Search for a blank image with a short deadline: whether embedder and searcher answer.

        Raises:
            StageUnavailableError: they do not.
        """
        context = replace(self.rules.context("readiness", self._policy), deadline=time.time() + CHECK_SECONDS)
        blank = np.zeros((self.rules.input_size, self.rules.input_size), dtype=np.uint8)
        await answer(self._stages, self.rules.search, context, Query(ByPixels(blank), 1, rerank=False))


def _milliseconds_since(start: float) -> float:
    return round((time.perf_counter() - start) * 1000, 3)
