"""The gateway: decodes queries, calls the stages and returns answers. Its routes are in ``mrcg_serve.http``."""

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
from mrcg.arrays import Mask
from mrcg.config.service import ServeSettings
from mrcg.corpus.assembly import bad_rows
from mrcg.corpus.reader import Corpus, read_quarantine
from mrcg.errors import MrcgError, NotFoundError, ReleaseNotLoadedError, StageUnavailableError
from mrcg.privacy.tombstones import Tombstones
from mrcg.retrieval.preprocessing import QueryRules
from mrcg.retrieval.query import PixelQuery, Query, Subject
from mrcg.retrieval.search import AllowAll, Policy, answer
from mrcg.storage.store import Store
from mrcg_serve.auth import Authenticator, LoopbackOnly
from mrcg_serve.observability import logs
from mrcg_serve.observability.metrics import SearchMeters
from mrcg_serve.problem_details import problem_of
from mrcg_serve.release_pinning import PinnedReleases, ReleaseContext
from mrcg_serve.remote_stages import RemoteStages
from mrcg_serve.replicas import Pin
from mrcg_serve.rpc.servicer import RetrievalServicerMixin

log = logging.getLogger(__name__)

PREVIEW_SIDE, QUALITY = 256, 90
#: Scans of one batch that are searched at the same time; a limit, so that a batch does not block other requests.
CONCURRENT_SCANS = 8
FACTS = ["label", "plane", "sequence", "site", "year", "group_id"]
CHECK_SECONDS = 5.0


class Gateway(RetrievalServicerMixin):
    """Answers searches, each from one release.

    Args:
        store: URL of the store.
        settings: of the service.
        stages: handles of the embedder, of the searchers (one for each part of the index) and of the reranker.
        policy: which images a caller may find.
        authenticator: who may call.
    """

    def __init__(
        self,
        store: str,
        settings: ServeSettings,
        stages: tuple[DeploymentHandle, Sequence[DeploymentHandle], DeploymentHandle],
        policy: Policy = AllowAll(),
        authenticator: Authenticator = LoopbackOnly(),
    ) -> None:
        logs.use_serve_handlers()
        opened = Store(store)
        self.store = opened
        self._tombstones = Tombstones(opened)
        self._stages = RemoteStages(*stages, settings, self._record_scores)
        self._policy = policy
        self.authenticator = authenticator
        self._pool = ThreadPoolExecutor(settings.gateway.threads)
        self._meters = SearchMeters()
        self._releases = PinnedReleases(opened, settings, self._stages, self._test_search, self._update_metrics)
        self.max_upload_bytes = settings.max_upload_bytes

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Change the pinned release. Serve calls this; the first call loads the release before the gateway is ready."""
        await self._releases.follow(Pin.model_validate(config).release)

    @property
    def release(self) -> int:
        """Number of the release that new requests are answered from."""
        return self._releases.number

    async def search(
        self,
        principal: str,
        subject: bytes | ImageIdQuery | EmbeddingQuery,
        params: SearchParams,
        request_id: str | None = None,
    ) -> Answer:
        """Return the k most similar images of the gallery, best first.

        Args:
            principal: name of the caller.
            subject: content of an image file, an image of the gallery, or an embedding.
            params: k, filters, grouping, deadline and other options.
            request_id: id of the request in logs and in its answer; a new one if None.

        Raises:
            UsageError: k is out of range, or the embedding has the wrong width or is not finite.
            FingerprintError: the embedding is from another encoder.
            ImageError: the image cannot be used.
            NotFoundError: the gallery has no such image, or the caller may not find it.
            StageUnavailableError: the embedder or the searcher is unavailable, or no loaded release is on all replicas.
        """
        try:
            return await self._search(principal, subject, params, request_id)
        except ReleaseNotLoadedError as error:
            self._meters.count_error("unavailable")
            raise StageUnavailableError(f"{error}; the release is changing, retry") from error
        except MrcgError as error:
            self._meters.count_error(problem_of(error).code)
            raise

    async def _search(
        self,
        principal: str,
        subject: bytes | ImageIdQuery | EmbeddingQuery,
        params: SearchParams,
        request_id: str | None,
    ) -> Answer:
        missing: ReleaseNotLoadedError | None = None
        for release in self._releases.loaded():
            try:
                return await self._search_under(release.rules, principal, subject, params, request_id)
            except ReleaseNotLoadedError as error:
                self._releases.report_missing(error)
                missing = error
        assert missing is not None
        raise missing

    async def _search_under(
        self,
        rules: QueryRules,
        principal: str,
        subject: bytes | ImageIdQuery | EmbeddingQuery,
        params: SearchParams,
        request_id: str | None,
    ) -> Answer:
        start = time.perf_counter()
        rules.check_k(params.k)
        # The deadline starts here, because the caller also waits for decoding.
        context = rules.context(principal, self._policy, params.deadline_ms, request_id)
        query = Query.of(await self._query_subject(rules, subject), params)
        decode = _milliseconds_since(start)
        result = await answer(self._stages, rules.search, context, query)
        milliseconds = {"decode": decode, **result.milliseconds, "total": _milliseconds_since(start)}
        result = result.model_copy(update={"milliseconds": milliseconds})
        self._meters.count_answer(result, params.rerank)
        outcome = {"release": result.release, "reranked": result.reranked, "partial": result.partial}
        log.info("answered", extra={"search": result.request_id, **outcome, "ms": milliseconds["total"]})
        return result

    def _record_scores(self, number: int, scores_n: npt.NDArray[np.float32]) -> None:
        release = next((r for r in self._releases.loaded() if r.rules.release == number), None)
        if release is not None:
            release.drift.observe(scores_n)

    async def _query_subject(self, rules: QueryRules, subject: bytes | ImageIdQuery | EmbeddingQuery) -> Subject:
        match subject:
            case ImageIdQuery():
                return subject
            case EmbeddingQuery():
                return rules.vector_query(subject)
            case _:
                loop = asyncio.get_running_loop()
                return PixelQuery(await loop.run_in_executor(self._pool, rules.prepare, subject))

    def search_many(self, principal: str, scans: Sequence[bytes], params: SearchParams) -> AsyncIterator[BatchLine]:
        """Yield a line for each scan as soon as it is done. A scan that fails has its problem on its line.

        Raises:
            UsageError: k is out of range.
        """
        self._releases.pinned.rules.check_k(params.k)
        return self._search_many(principal, scans, params)

    async def _search_many(
        self, principal: str, scans: Sequence[bytes], params: SearchParams
    ) -> AsyncIterator[BatchLine]:
        slots = asyncio.Semaphore(CONCURRENT_SCANS)

        async def search_line(index: int, scan: bytes) -> BatchLine:
            async with slots:
                try:
                    return BatchLine(index=index, answer=await self.search(principal, scan, params))
                except MrcgError as error:
                    problem = problem_of(error)
                    return BatchLine(index=index, code=problem.code, detail=problem.detail)

        tasks = [asyncio.create_task(search_line(index, scan)) for index, scan in enumerate(scans)]
        try:
            for line in asyncio.as_completed(tasks):
                yield await line
        finally:  # the caller may have disconnected
            for task in tasks:
                task.cancel()

    async def image(self, principal: str, image_id: str) -> ImageFacts:
        """Return the metadata of a gallery image that the caller may find.

        Raises:
            NotFoundError: there is no such image, or the caller may not find it; both give the same message.
        """
        allowed = self._policy.allowed(principal)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._image, image_id, allowed)

    def quarantine(self, first: int, count: int) -> tuple[int, list[QuarantinedFile]]:
        """Return the number of files that the corpus refused, and ``count`` of them from index ``first`` on."""
        table = bad_rows(read_quarantine(self._releases.pinned.corpus.artefact))
        rows = table.slice(first, count).to_pylist()
        return table.num_rows, [
            QuarantinedFile(file=row["source_key"], reason=row["reason"], detail=row["detail"]) for row in rows
        ]

    async def preview(self, principal: str, image_id: str) -> bytes:
        """Return a WebP of a gallery image that the caller may find, at most 256 pixels on the longer side.

        Raises:
            NotFoundError: there is no such image, or the caller may not find it; both give the same message.
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
        self._tombstones.refresh()
        if (allowed is not None and not allowed[row]) or self._tombstones.forbidden([image_id]):
            raise corpus.unknown_image(image_id)
        return corpus, row

    def _corpus_of(self, image_id: str) -> Corpus:
        # All loaded releases, because a hit may come from the previous release or from one that is not pinned yet.
        releases = self._releases.loaded()
        for release in releases:
            with contextlib.suppress(NotFoundError):
                release.corpus.row_of(image_id)
                return release.corpus
        raise releases[0].corpus.unknown_image(image_id)

    async def check(self) -> None:
        """Search for a blank image with a short deadline, to check that embedder and searcher respond.

        Raises:
            StageUnavailableError: one of them does not.
        """
        try:
            await self._search_blank(self._releases.pinned.rules, rerank=False)
        except ReleaseNotLoadedError as error:
            self._releases.report_missing(error)
            raise StageUnavailableError(str(error)) from error

    def _update_metrics(self, release: ReleaseContext) -> None:
        self._meters.set_release(release.rules.release, release.created, release.drift.index)

    async def _test_search(self, release: ReleaseContext) -> None:
        result = await self._search_blank(release.rules, rerank=True)
        if not result.reranked:
            raise StageUnavailableError(f"release {release.rules.release} cannot rerank yet; trying again")

    async def _search_blank(self, rules: QueryRules, rerank: bool) -> Answer:
        context = replace(rules.context("readiness", self._policy), deadline=time.time() + CHECK_SECONDS)
        blank = np.zeros((rules.input_size, rules.input_size), dtype=np.uint8)
        return await answer(self._stages, rules.search, context, Query(PixelQuery(blank), 1, rerank=rerank))


def _milliseconds_since(start: float) -> float:
    return round((time.perf_counter() - start) * 1000, 3)
