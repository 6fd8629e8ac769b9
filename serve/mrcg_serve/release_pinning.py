"""Which release a gateway answers under, and how it changes while requests come in (DESIGN §4).

Stages take a new release on by themselves. When all their replicas have it, and a search under it went through, new
requests are answered under it; those that are under way end as they began. Nothing waits, nothing is restarted.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mrcg.config.settings import ServeSettings
from mrcg.corpus.reader import Corpus
from mrcg.errors import MrcgError
from mrcg.metrics.drift import ScoreDrift
from mrcg.metrics.report import Report
from mrcg.releases.release import Release, read_release
from mrcg.retrieval.hot_swap import ReleaseCache, ReleaseNotLoadedError, ReleaseWatcher
from mrcg.retrieval.preprocessing import QueryRules
from mrcg.storage.store import Store
from mrcg_serve.remote_stages import RemoteStages

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReleaseContext:
    """What a gateway has of a release: how queries are taken in, the pictures of the gallery, and how scores drift."""

    rules: QueryRules
    corpus: Corpus
    made: float
    drift: ScoreDrift


class Pinned:
    """The release that new requests are answered under.

    Args:
        store: whose releases are followed.
        settings: of the service.
        stages: whose replicas have to have a release before it is pinned.
        rehearse: searches once under a release; what it raises keeps the release out.
        note: is told now and then what is pinned.
    """

    def __init__(
        self,
        store: Store,
        settings: ServeSettings,
        stages: RemoteStages,
        rehearse: Callable[[ReleaseContext], Awaitable[None]],
        note: Callable[[ReleaseContext], None],
    ) -> None:
        self._store, self._settings, self._stages = store, settings, stages
        self._rehearse, self._note = rehearse, note
        self._desks = ReleaseCache(lambda release: str(release.number), self._desk, settings.grace_s)
        self._following = ReleaseWatcher(store, self._desks)
        self._missed = False
        self._task: asyncio.Task[None] | None = None
        self.number = 0

    def _desk(self, release: Release) -> ReleaseContext:
        corpus = Corpus(self._store.artefact("corpus", release.corpus))
        made = datetime.datetime.fromisoformat(release.created).timestamp()
        judged = Report.model_validate_json(self._store.artefact("reports", release.report).read_bytes("report.json"))
        rules = QueryRules.of(self._store, release, self._settings)
        return ReleaseContext(rules, corpus, made, ScoreDrift(judged.calibration.raw))

    async def follow(self, named: int | None) -> None:
        """Answer under the named release from now on, or under the newest where none is named."""
        if self._task is not None:
            self._following.follow(named)
            return
        await asyncio.to_thread(self._following.start, named)
        self.number = self._desks.numbers[-1]
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._settings.follow_s)
            try:
                await self.step()
            except MrcgError:
                log.warning("the stages cannot be asked for their releases now", exc_info=True)

    async def step(self) -> None:
        """Look once; pin what is wanted and everywhere, or what is everywhere where the pinned one is missed."""
        self._note(self.current)
        await asyncio.to_thread(self._following.step)
        wanted = await asyncio.to_thread(lambda: self._following.wanted)
        if wanted in self._following.refused or (wanted == self.number and not self._missed):
            return
        everywhere = await self._stages.releases()
        if wanted in everywhere:
            target = wanted
        elif self.number in everywhere or not everywhere:
            return
        else:
            target = max(everywhere)
        await asyncio.to_thread(lambda: self._desks.prepare(read_release(self._store, target)))
        if target != self.number:
            await self._rehearse(self._desks.of(target))
            log.warning("answering under release %d from now on, no more under %d", target, self.number)
        self.number, self._missed = target, False

    @property
    def current(self) -> ReleaseContext:
        """Of the pinned release."""
        return self._desks.of(self.number)

    def contexts(self) -> list[ReleaseContext]:
        """Those that a request may be answered at: of the pinned release, then of others, the newest first."""
        others = [self._desks.peek(number) for number in self._desks.numbers[::-1] if number != self.number]
        return [self.current, *(current for current in others if current is not None)]

    def miss(self, error: ReleaseNotLoadedError) -> None:
        """A replica did not have the pinned release: look soon which one all have."""
        log.warning("%s", error)
        self._missed = True
