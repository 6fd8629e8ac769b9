"""Erase a patient or an image: forbidden at once, then made anew without them, then purged, then proved (DESIGN §5).

Every step can be killed: a record of what was found comes first, and the same command goes on by it.
"""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mrcg import __version__
from mrcg.corpus.sources import Source
from mrcg.erasure.discovery import tainted, traces, with_residue
from mrcg.erasure.purge import purge_corpus
from mrcg.erasure.records import (
    RECEIPTS,
    RECORDS,
    ErasureRecord,
    ErasureTarget,
    Receipt,
    SignedReceipt,
    holds,
    made_with,
    merge_records,
    plan_erasure,
    versions_back,
)
from mrcg.errors import IntegrityError, LostRaceError, NotFoundError, StoreError
from mrcg.execution.executor import Executor, Progress
from mrcg.pipeline.stages import Step
from mrcg.pipeline.update import ReleaseUpdate, purged_corpus
from mrcg.privacy.pseudonyms import Pseudonyms
from mrcg.privacy.signing import Signer
from mrcg.privacy.suppression import list_digest, suppress, token
from mrcg.privacy.tombstones import tombstone
from mrcg.releases.release import promote, read_release, release_numbers
from mrcg.storage.attempts import begin, busy_versions, dead_attempts, inputs_of_live_attempts
from mrcg.storage.cache import Cache
from mrcg.storage.catalog import (
    Key,
    all_manifests,
    chain,
    discard_attempts,
    key_of,
    name_of,
    remove_loose,
    remove_versions,
)
from mrcg.storage.manifest import KINDS, Manifest, make_manifest
from mrcg.storage.store import Store
from mrcg_jobs.runner import run_stages

log = logging.getLogger(__name__)

Forget = Callable[[Sequence[str]], None]
#: A file that is being fetched into a cache grows at least this often (seconds).
FETCHING_SECONDS = 3600.0


@dataclass(frozen=True)
class Eraser:
    """Erases from one store.

    Attributes:
        pseudonyms: the key that the corpora were made with.
        signer: of the receipt.
        executor: do what has to be made anew; None: those of Ray.
        ray_address: of a cluster.
        progress_of: gives a step the progress that it reports to.
        forget: removes from the caches of all nodes all files but some, by SHA-256.
    """

    store: Store
    pseudonyms: Pseudonyms | None
    signer: Signer
    executor: Executor | None
    ray_address: str | None
    progress_of: Callable[[str], Progress]
    forget: Forget

    def erase(self, target: ErasureTarget) -> SignedReceipt:
        """Erase somebody; a second time gives the same receipt.

        Raises:
            NotFoundError: no corpus has such an image.
            UsageError: a corpus with it was made with another pseudonym key.
            StoreError: a job is at work on what has to go.
            IntegrityError: something of them is still in the store.
        """
        record = self._forbid(target)
        if (signed := self._receipt_of(record)) is not None:
            return signed
        made, release = self._corpora_anew(record), self._release_anew(record)
        if release is not None:
            made |= chain(all_manifests(self.store), read_release(self.store, release).pins.items())
        removed = self._purge(record)
        if left := traces(self.store, record.names, record.vectors):
            raise IntegrityError(
                f"{left[0]} and {len(left) - 1} more files still hold them: run the same command again"
            )
        receipt = Receipt(
            ident=record.ident,
            finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            code_version=__version__,
            scans=len(record.images),
            identical_copies_left=record.copies,
            names=record.names,
            vectors=record.vectors,
            suppressed=record.suppressed,
            removed_versions=tuple(removed),
            made_versions=tuple(sorted(map(name_of, made))),
            release=release,
            trained_on_them=record.models,
        )
        signed = SignedReceipt(receipt=receipt, signed=self.signer.sign(receipt.to_bytes()))
        self.store.write_bytes(_receipt_place(record), signed.model_dump_json(indent=1).encode())
        return signed

    def _forbid(self, target: ErasureTarget) -> ErasureRecord:
        """At once: nobody is shown them, and no ingestion brings them back. Then the record says so."""
        earlier = self._records_of(target)
        for record in earlier:
            if self._receipt_of(record) is None:
                return record  # begun, and not finished
        if earlier and not any(map(self._came_back, earlier)):
            return earlier[-1]
        record = self._drawn(target, earlier)
        tombstone(self.store, record.images)
        suppress(self.store, record.suppressed)
        self._write(record)
        return record

    def _drawn(self, target: ErasureTarget, earlier: Sequence[ErasureRecord]) -> ErasureRecord:
        """What is known of them now; and from earlier erasures, where they came back since."""
        try:
            record = plan_erasure(self.store, target, self.pseudonyms)
        except NotFoundError:
            if not earlier:
                raise
            record = earlier[-1]  # what came back are versions that were made of them
        for one in earlier:
            record = merge_records(record, one)
        return record

    def _records_of(self, target: ErasureTarget) -> list[ErasureRecord]:
        """Erasures of this wish, in order; found by its token, for what they were about may be gone by now."""
        mine = token(self.pseudonyms, target.kind, target.value)
        records = [
            ErasureRecord.model_validate(self.store.read_json(f"{RECORDS}/{name}"))
            for name in self.store.listdir(RECORDS)
        ]
        return sorted((one for one in records if mine in one.suppressed), key=lambda one: (one.times, one.ident))

    def _came_back(self, record: ErasureRecord) -> bool:
        """Whether there is a corpus that has them, or anything of what was removed: restored, say, from a copy."""
        return bool(versions_back(self.store, record.doomed)) or any(
            holds(self.store, version, record) for version in self.store.versions("corpus")
        )

    def _receipt_of(self, record: ErasureRecord) -> SignedReceipt | None:
        place = _receipt_place(record)
        return SignedReceipt.model_validate(self.store.read_json(place)) if self.store.exists(place) else None

    def _write(self, record: ErasureRecord) -> None:
        self.store.write_bytes(f"{RECORDS}/{record.ident}.json", record.model_dump_json(indent=1).encode())

    def _tainted(self, record: ErasureRecord) -> set[Key]:
        """Versions that may hold something of them as the store is now."""
        manifests = all_manifests(self.store)
        holding = [key for key in manifests if key[0] == "corpus" and holds(self.store, key[1], record)]
        known = [key_of(one) for one in record.doomed]
        return tainted(manifests, [*known, *holding, *with_residue(self.store, manifests)]) & set(manifests)

    def _corpora_anew(self, record: ErasureRecord) -> set[Key]:
        """Make the newest corpus of each source without them, where it has them: nobody has to read a source again."""
        doomed = [self.store.manifest(*key) for key in self._tainted(record) if key[0] == "corpus"]
        grown_from = {one.inputs.get("corpus") for one in doomed}
        steps = [purged_corpus(one, list_digest(self.store)) for one in doomed if one.version not in grown_from]
        for step in steps:
            self._make_corpus(step)
        return {("corpus", step.version) for step in steps}

    def _release_anew(self, record: ErasureRecord) -> int | None:
        """Make the current release without them, where it has them; its number."""
        while release_numbers(self.store):
            release = read_release(self.store)
            if self._tainted(record).isdisjoint(release.pins.items()):
                return release.number
            line = ReleaseUpdate.of(self.store, release)
            corpus, *steps = line.purged(list_digest(self.store))
            self._make_corpus(corpus)
            nowhere = Source("", "", 0, 0, False)
            for _ in run_stages(
                self.store, line.config, nowhere, steps, self.ray_address, self.progress_of, self.executor
            ):
                pass
            try:
                return promote(self.store, steps[-1].version, None).release.number
            except LostRaceError:
                log.info("somebody else promoted a release just now: it is looked at, too")
        return None

    def _make_corpus(self, step: Step) -> None:
        if self.store.has("corpus", step.version):
            return
        self.progress_of("purge corpus")(0, 0, "leaving them out")
        base = self.store.artefact("corpus", step.inputs["corpus"])
        with begin(self.store, "corpus", step.version, step.inputs) as attempt:
            joined = purge_corpus(base, attempt, self.pseudonyms if made_with(base.manifest) else None)
            manifest = make_manifest("corpus", step.version, step.settings, step.inputs, joined.counts, joined.files)
            self.store.record_run(attempt.publish(manifest), {"started": time.time()})

    def _purge(self, record: ErasureRecord) -> list[str]:
        """Remove every version that holds them or was made from one that does, and what caches kept of it."""
        # They go before anything is looked at: claimed by this process they would seem to be at work.
        discard_attempts(self.store, dead_attempts(self.store, claim=True))
        manifests = all_manifests(self.store)
        doomed = sorted(self._tainted(record), key=lambda key: _last_made_first(key, manifests[key]))
        self._nobody_is_at_work(doomed)
        # Written before the first goes: who goes on after a kill does not see it any more.
        gone = sorted({*record.doomed, *map(name_of, doomed)})
        self._write(record.model_copy(update={"doomed": tuple(gone)}))
        stay = {key: one for key, one in manifests.items() if key not in doomed}
        remove_versions(self.store, doomed, stay)
        # What a killed purge left of versions whose manifests it had removed.
        remove_loose(self.store)
        self.forget(sorted({entry.sha256 for one in stay.values() if one is not None for entry in one.files}))
        return gone

    def _nobody_is_at_work(self, doomed: Sequence[Key]) -> None:
        busy = (inputs_of_live_attempts(self.store) | busy_versions(self.store)).intersection(doomed)
        if busy:
            kind, version = sorted(busy)[0]
            raise StoreError(
                f"a job is at work on {kind}/{version}, which has to go: let it end or stop it, then run the same "
                "command again (they are found by nobody meanwhile)"
            )


def _last_made_first(key: Key, manifest: Manifest | None) -> tuple[int, int, Key]:
    """Corpora come last, the newest last of all: while they are there a killed purge finds what was made from them."""
    generation = 0 if manifest is None else int(manifest.counts.get("generation", 0))
    return -list(KINDS).index(key[0]), generation, key


def _receipt_place(record: ErasureRecord) -> str:
    return f"{RECEIPTS}/{record.ident}.json"


def forget_here(kept: Sequence[str]) -> None:
    """Remove from this node's cache all but some files.

    What versions that were swept long ago left there nobody knows any more; what other stores need they fetch again.
    """
    cache, stay = Cache.of_this_node(), frozenset(kept)
    if cache is None or not cache.folder.is_dir():
        return
    for path in cache.folder.iterdir():
        # A file that is being fetched right now is left to whoever fetches it.
        if path.name not in stay and not (path.name.startswith(".") and _is_young(path)):
            path.unlink(missing_ok=True)


def _is_young(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < FETCHING_SECONDS
    except FileNotFoundError:
        return True


def forgetting(store: Store, ray_address: str | None, here: bool) -> Forget:
    """What removes files from caches: a folder has none; a remote store's are on every node of the cluster."""
    if store.local or here:
        return forget_here

    def everywhere(kept: Sequence[str]) -> None:
        from mrcg.execution import ray_environment

        ray_environment.prepare()
        from mrcg_jobs.ray_runtime import cluster
        from mrcg_jobs.ray_runtime.executor import on_every_node

        cluster.start(ray_address)
        on_every_node(forget_here, kept)
        forget_here(kept)

    return everywhere
