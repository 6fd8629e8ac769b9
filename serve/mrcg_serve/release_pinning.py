"""Which release a gateway answers from, and how it changes while requests come in.

Stages load a new release by themselves. When all their replicas have loaded it and a test search under it has
succeeded, new requests use it; running requests finish under their own release. No request waits, and no process
restarts (docs/architecture.md#how-a-release-is-loaded-pinned-and-dropped).
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mrcg.config.service import ServeSettings
from mrcg.corpus.reader import Corpus
from mrcg.errors import MrcgError, ReleaseNotLoadedError
from mrcg.metrics.drift import ScoreDrift
from mrcg.metrics.report import Report
from mrcg.releases.release import Release, read_release
from mrcg.retrieval.hot_swap import ReleaseCache, ReleaseWatcher
from mrcg.retrieval.preprocessing import QueryRules
from mrcg.storage.store import Store
from mrcg_serve.remote_stages import RemoteStages

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReleaseContext:
    """What a gateway holds of a release.

    Attributes:
        rules: how a query is decoded and checked.
        corpus: the images of the gallery.
        created: when the release was created, in seconds since 1970.
        drift: how the scores that are served drift from those of the release's report.
    """

    rules: QueryRules
    corpus: Corpus
    created: float
    drift: ScoreDrift


class PinnedReleases:
    """The release that new requests are answered from (pinned), and the others that are loaded.

    Args:
        store: whose releases are followed.
        settings: of the service.
        stages: whose replicas must all have a release before it is pinned.
        test_search: runs one search under a release; if it raises, the release is not pinned.
        update_metrics: is called at every step with the pinned release.
    """

    def __init__(
        self,
        store: Store,
        settings: ServeSettings,
        stages: RemoteStages,
        test_search: Callable[[ReleaseContext], Awaitable[None]],
        update_metrics: Callable[[ReleaseContext], None],
    ) -> None:
        self._store, self._settings, self._stages = store, settings, stages
        self._test_search, self._update_metrics = test_search, update_metrics
        self._cache = ReleaseCache(lambda release: str(release.number), self._load, settings.grace_s)
        self._watcher = ReleaseWatcher(store, self._cache)
        self._pinned_missing = False
        self._task: asyncio.Task[None] | None = None
        self.number = 0

    def _load(self, release: Release) -> ReleaseContext:
        corpus = Corpus(self._store.artefact("corpus", release.corpus))
        created = datetime.datetime.fromisoformat(release.created).timestamp()
        report = Report.model_validate_json(self._store.artefact("reports", release.report).read_bytes("report.json"))
        rules = QueryRules.of(self._store, release, self._settings)
        return ReleaseContext(rules, corpus, created, ScoreDrift(report.calibration.raw))

    async def follow(self, number: int | None) -> None:
        """Pin the given release, or follow the newest one if the number is None. The first call loads it.

        Raises:
            MrcgError: on the first call, no release can be loaded.
        """
        if self._task is not None:
            self._watcher.follow(number)
            return
        await asyncio.to_thread(self._watcher.start, number)
        self.number = self._cache.numbers[-1]
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._settings.follow_s)
            try:
                await self.step()
            except MrcgError:
                log.warning("cannot check which releases the stages have; retrying", exc_info=True)

    async def step(self) -> None:
        """Check for a change once.

        Pin the wanted release once all replicas have it. Otherwise, if some replica lacks the pinned release, pin the
        newest release that all replicas have.

        Raises:
            MrcgError: the stages cannot be asked, or the release cannot be loaded or answers no test search.
        """
        self._update_metrics(self.pinned)
        await asyncio.to_thread(self._watcher.step)
        wanted = await asyncio.to_thread(lambda: self._watcher.target)
        if wanted in self._watcher.rejected or (wanted == self.number and not self._pinned_missing):
            return
        everywhere = await self._stages.releases()
        if wanted in everywhere:
            target = wanted
        elif self.number in everywhere or not everywhere:
            return
        else:
            target = max(everywhere)
        await asyncio.to_thread(lambda: self._cache.prepare(read_release(self._store, target)))
        if target != self.number:
            await self._test_search(self._cache.get(target))
            log.warning("new requests now use release %d instead of release %d", target, self.number)
        self.number, self._pinned_missing = target, False

    @property
    def pinned(self) -> ReleaseContext:
        """The pinned release."""
        return self._cache.get(self.number)

    def loaded(self) -> list[ReleaseContext]:
        """Releases that a request can be answered from: the pinned one, then the others, newest first."""
        others = [self._cache.peek(number) for number in self._cache.numbers[::-1] if number != self.number]
        return [self.pinned, *(release for release in others if release is not None)]

    def report_missing(self, error: ReleaseNotLoadedError) -> None:
        """Note that a replica lacked the pinned release: the next step looks for one that all replicas have."""
        log.warning("%s", error)
        self._pinned_missing = True
