"""The gateway's work: checked pixels on, answers out. Its routes are in ``mrcg_serve.http.application``."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from ray.serve.handle import DeploymentHandle

from mrcg.api.requests import EmbeddingQuery, ImageIdQuery, SearchParams
from mrcg.api.responses import Answer, BatchLine, ImageFacts, QuarantinedFile
from mrcg.config.settings import ServeSettings
from mrcg.corpus.assembly import bad_rows
from mrcg.corpus.reader import Corpus, read_quarantine
from mrcg.errors import MrcgError, NotFoundError
from mrcg.index.distances import Mask
from mrcg.privacy.tombstones import Tombstones
from mrcg.retrieval.hot_swap import ReleaseNotLoadedError
from mrcg.retrieval.preprocessing import QueryRules
from mrcg.retrieval.query import PixelQuery, Query, Subject
from mrcg.retrieval.search import AllowAll, Policy, StageUnavailableError, answer
from mrcg.storage.store import Store
from mrcg_serve.auth import Authenticator, LoopbackOnly
from mrcg_serve.observability import logs
from mrcg_serve.observability.metrics import SearchMeters
from mrcg_serve.problem_details import problem_of
from mrcg_serve.release_pinning import Pinned, ReleaseContext
from mrcg_serve.remote_stages import RemoteStages
from mrcg_serve.replicas import Pin
from mrcg_serve.rpc.servicer import Remote

log = logging.getLogger(__name__)

PREVIEW_SIDE, QUALITY = 256, 90
#: Scans of one batch that are searched for at once: others want their turn, too.
AT_ONCE = 8
FACTS = ["label", "plane", "sequence", "site", "year", "group_id"]
CHECK_SECONDS = 5.0


class Gateway(Remote):
    """Takes searches in, each under one release. Collaborators are injected: who may come, what they may find."""

    def __init__(
        self,
        store: str,
        settings: ServeSettings,
        stages: tuple[DeploymentHandle, Sequence[DeploymentHandle], DeploymentHandle],
        policy: Policy = AllowAll(),
        authenticator: Authenticator = LoopbackOnly(),
    ) -> None:
        logs.join()
        opened = Store(store)
        self.store = opened
        self._tombstones = Tombstones(opened)
        self._stages = RemoteStages(*stages, settings, self._scored)
        self._policy = policy
        self.authenticator = authenticator
        self._pool = ThreadPoolExecutor(settings.gateway.threads)
        self._meters = SearchMeters()
        self._pinned = Pinned(opened, settings, self._stages, self._rehearse, self._note)
        self.max_upload_bytes = settings.max_upload_bytes

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Answer under another release. Serve calls this, the first time before the gateway is ready."""
        await self._pinned.follow(Pin.model_validate(config).release)

    @property
    def release(self) -> int:
        """The release that new requests are answered under."""
        return self._pinned.number

    async def search(
        self,
        principal: str,
        subject: bytes | ImageIdQuery | EmbeddingQuery,
        params: SearchParams,
        named: str | None = None,
    ) -> Answer:
        """The k most similar images of the gallery, best first.

        Args:
            principal: who asks.
            subject: content of an image file, an image of the gallery, or an embedding.
            params: what is asked of it.
            named: what the request is called in logs and in its answer.

        Raises:
            UsageError: k is out of range, or the embedding has another width.
            FingerprintError: the embedding is of another encoder.
            ImageError: the image cannot be used.
            NotFoundError: the gallery has no such image, or not for this caller.
            StageUnavailableError: the embedder or the searcher cannot answer.
        """
        try:
            return await self._search(principal, subject, params, named)
        except ReleaseNotLoadedError as error:
            self._meters.refused("unavailable")
            raise StageUnavailableError(f"{error}: it is just changing") from error
        except MrcgError as error:
            self._meters.refused(problem_of(error).code)
            raise

    async def _search(
        self, principal: str, subject: bytes | ImageIdQuery | EmbeddingQuery, params: SearchParams, named: str | None
    ) -> Answer:
        missing: ReleaseNotLoadedError | None = None
        for current in self._pinned.contexts():
            try:
                return await self._under(current.rules, principal, subject, params, named)
            except ReleaseNotLoadedError as error:
                self._pinned.miss(error)
                missing = error
        assert missing is not None
        raise missing

    async def _under(
        self,
        rules: QueryRules,
        principal: str,
        subject: bytes | ImageIdQuery | EmbeddingQuery,
        params: SearchParams,
        named: str | None,
    ) -> Answer:
        start = time.perf_counter()
        rules.check_k(params.k)
        # The deadline counts from here: decoding is a part of what the caller waits for.
        context = rules.context(principal, self._policy, params.deadline_ms, named)
        query = Query.of(await self._subject(rules, subject), params)
        decode = _milliseconds_since(start)
        result = await answer(self._stages, rules.search, context, query)
        laps = {"decode": decode, **result.milliseconds, "total": _milliseconds_since(start)}
        result = result.model_copy(update={"milliseconds": laps})
        self._meters.answered(result, params.rerank)
        told = {"release": result.release, "reranked": result.reranked, "partial": result.partial, "ms": laps["total"]}
        log.info("answered", extra={"search": result.request_id, **told})
        return result

    def _scored(self, release: int, scores_n: npt.NDArray[np.float32]) -> None:
        current = next((current for current in self._pinned.contexts() if current.rules.release == release), None)
        if current is not None:
            current.drift.see(scores_n)

    async def _subject(self, rules: QueryRules, subject: bytes | ImageIdQuery | EmbeddingQuery) -> Subject:
        match subject:
            case ImageIdQuery():
                return subject
            case EmbeddingQuery():
                return rules.vector_query(subject)
            case _:
                loop = asyncio.get_running_loop()
                return PixelQuery(await loop.run_in_executor(self._pool, rules.prepare, subject))

    def search_many(self, principal: str, scans: Sequence[bytes], params: SearchParams) -> AsyncIterator[BatchLine]:
        """Answers to many scans as they come; the problem of one ends no other.

        Raises:
            UsageError: k is out of range.
        """
        self._pinned.current.rules.check_k(params.k)
        return self._search_many(principal, scans, params)

    async def _search_many(
        self, principal: str, scans: Sequence[bytes], params: SearchParams
    ) -> AsyncIterator[BatchLine]:
        turns = asyncio.Semaphore(AT_ONCE)

        async def one(index: int, scan: bytes) -> BatchLine:
            async with turns:
                try:
                    return BatchLine(index=index, answer=await self.search(principal, scan, params))
                except MrcgError as error:
                    told = problem_of(error)
                    return BatchLine(index=index, code=told.code, detail=told.detail)

        tasks = [asyncio.create_task(one(index, scan)) for index, scan in enumerate(scans)]
        try:
            for line in asyncio.as_completed(tasks):
                yield await line
        finally:  # whoever asked may have gone
            for task in tasks:
                task.cancel()

    async def image(self, principal: str, image_id: str) -> ImageFacts:
        """What is known of a gallery image that the caller may find.

        Raises:
            NotFoundError: there is no such image, or not for this caller: both read alike.
        """
        allowed = self._policy.allowed(principal)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._image, image_id, allowed)

    def quarantine(self, first: int, count: int) -> tuple[int, list[QuarantinedFile]]:
        """How many files the corpus refused, and some of them."""
        table = bad_rows(read_quarantine(self._pinned.current.corpus.artefact))
        rows = table.slice(first, count).to_pylist()
        return table.num_rows, [
            QuarantinedFile(file=row["source_key"], reason=row["reason"], detail=row["detail"]) for row in rows
        ]

    async def preview(self, principal: str, image_id: str) -> bytes:
        """WebP of a gallery image that the caller may find, at most 256 pixels on the longer side.

        Raises:
            NotFoundError: there is no such image, or not for this caller: both read alike.
        """
        allowed = self._policy.allowed(principal)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._preview, image_id, allowed)

    def _preview(self, image_id: str, allowed: Mask | None) -> bytes:
        corpus, _ = self._row(image_id, allowed)
        image = Image.fromarray(corpus.image(image_id))
        image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        image.save(out, "WEBP", quality=QUALITY)
        return out.getvalue()

    def _image(self, image_id: str, allowed: Mask | None) -> ImageFacts:
        corpus, row = self._row(image_id, allowed)
        facts = corpus.scans.select(FACTS).slice(row, 1).to_pylist()[0]
        group = facts.pop("group_id")
        return ImageFacts(image_id=image_id, group=group, preview=f"/v1/images/{image_id}/preview", **facts)

    def _row(self, image_id: str, allowed: Mask | None) -> tuple[Corpus, int]:
        corpus = self._corpus_of(image_id)
        row = corpus.row_of(image_id)
        self._tombstones.look()
        if (allowed is not None and not allowed[row]) or self._tombstones.forbidden([image_id]):
            raise corpus.unknown(image_id)
        return corpus, row

    def _corpus_of(self, image_id: str) -> Corpus:
        # A hit of the release before, or of the one that is just coming, has a picture, too.
        contexts = self._pinned.contexts()
        for current in contexts:
            with contextlib.suppress(NotFoundError):
                current.corpus.row_of(image_id)
                return current.corpus
        raise contexts[0].corpus.unknown(image_id)

    async def check(self) -> None:
        """Search for a blank image with a short deadline: whether embedder and searcher answer.

        Raises:
            StageUnavailableError: they do not.
        """
        try:
            await self._blank(self._pinned.current.rules, rerank=False)
        except ReleaseNotLoadedError as error:
            self._pinned.miss(error)
            raise StageUnavailableError(str(error)) from error

    def _note(self, current: ReleaseContext) -> None:
        self._meters.pinned(current.rules.release, current.made, current.drift.index)

    async def _rehearse(self, current: ReleaseContext) -> None:
        result = await self._blank(current.rules, rerank=True)
        if not result.reranked:
            raise StageUnavailableError(f"release {current.rules.release} does not rerank yet")

    async def _blank(self, rules: QueryRules, rerank: bool) -> Answer:
        context = replace(rules.context("readiness", self._policy), deadline=time.time() + CHECK_SECONDS)
        blank = np.zeros((rules.input_size, rules.input_size), dtype=np.uint8)
        return await answer(self._stages, rules.search, context, Query(PixelQuery(blank), 1, rerank=rerank))


def _milliseconds_since(start: float) -> float:
    return round((time.perf_counter() - start) * 1000, 3)
