"""Erase a patient or an image: hide the scans, rebuild without them, delete old versions, verify, sign a receipt.

Every step can be interrupted: a record of what to erase is written first, and running the same command again resumes
from it. See docs/index.md#erasure.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from mrcg.corpus.sources import Source
from mrcg.erasure.discovery import affected_versions, find_traces, with_unlisted_rows
from mrcg.erasure.records import (
    RECEIPTS,
    RECORDS,
    ErasureRecord,
    ErasureTarget,
    Receipt,
    SignedReceipt,
    has_erased_scans,
    merge_records,
    plan_erasure,
    reappeared_versions,
)
from mrcg.errors import IntegrityError, LostRaceError, NotFoundError, StoreError
from mrcg.execution.executor import Executor, Progress
from mrcg.pipeline.plan import Step
from mrcg.pipeline.rebuild import make_rebuilt
from mrcg.pipeline.update import ReleaseUpdate, purged_corpus
from mrcg.privacy.pseudonyms import Pseudonyms
from mrcg.privacy.signing import Signer
from mrcg.privacy.suppression import list_digest, suppress, token
from mrcg.privacy.tombstones import tombstone
from mrcg.releases.release import promote, read_release, release_numbers
from mrcg.stages.counts import CorpusCounts
from mrcg.stages.registry import artefact_kinds
from mrcg.storage.attempts import abandoned_attempts, busy_versions, inputs_of_live_attempts
from mrcg.storage.cache import Cache
from mrcg.storage.catalog import (
    Key,
    all_manifests,
    discard_attempts,
    key_of,
    name_of,
    remove_unreferenced_files,
    remove_versions,
    with_dependencies,
)
from mrcg.storage.manifest import Manifest
from mrcg.storage.store import Store
from mrcg.version import __version__
from mrcg_jobs.runner import run_stages

log = logging.getLogger(__name__)

SweepCaches = Callable[[Sequence[str]], None]


@dataclass(frozen=True)
class Eraser:
    """Erases patients and images from one store.

    Attributes:
        store: the store.
        pseudonyms: key that the corpora were made with; None if they have no pseudonyms.
        signer: signs the receipt.
        executor: for stages of the rebuild that map work over items; None uses Ray.
        ray_address: of a cluster; None starts one on this machine.
        progress_of: returns the progress callback of a step, given its name.
        sweep_caches: deletes cached files on all nodes, except those with the given SHA-256 hashes.
    """

    store: Store
    pseudonyms: Pseudonyms | None
    signer: Signer
    executor: Executor | None
    ray_address: str | None
    progress_of: Callable[[str], Progress]
    sweep_caches: SweepCaches

    def erase(self, target: ErasureTarget) -> SignedReceipt:
        """Erase a target and return the signed receipt; erasing it again returns the same receipt.

        Raises:
            NotFoundError: no corpus has the image, or scans of the patient.
            UsageError: a corpus that has it was made with another pseudonym key.
            StoreError: a running job uses a version that must be deleted.
            IntegrityError: erased data is still in the store.
        """
        record = self._start(target)
        if (signed := self._receipt_of(record)) is not None:
            return signed
        new_versions, release = self._rebuild_corpora(record), self._rebuild_release(record)
        if release is not None:
            new_versions |= with_dependencies(all_manifests(self.store), read_release(self.store, release).pins.items())
        removed = self._purge(record)
        if files := find_traces(self.store, record.names, record.vectors):
            raise IntegrityError(
                f"erased data is still in {files[0]} and {len(files) - 1} more files: run the same command again"
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
            made_versions=tuple(sorted(map(name_of, new_versions))),
            release=release,
            trained_on_them=record.models,
        )
        signed = SignedReceipt(receipt=receipt, signed=self.signer.sign(receipt.to_bytes()))
        self.store.write_bytes(_receipt_path(record), signed.model_dump_json(indent=1).encode())
        return signed

    def _start(self, target: ErasureTarget) -> ErasureRecord:
        """Hide the scans from searches and block their ingestion, then write and return the record of the erasure."""
        for record in self._records_with({*self._tokens(target), *target.marks}):
            if self._receipt_of(record) is None:
                return record  # unfinished: resume it
        earlier = self._records_with({*self._tokens(target), *target.earlier})
        if earlier and not any(map(self._came_back, earlier)):
            return earlier[-1]
        record = self._new_record(target, earlier)
        tombstone(self.store, record.images)
        suppress(self.store, record.suppressed)
        self._write_record(record)
        return record

    def _new_record(self, target: ErasureTarget, earlier: Sequence[ErasureRecord]) -> ErasureRecord:
        """Plan the erasure from the present store and add what earlier erasures of this target recorded."""
        try:
            record = plan_erasure(self.store, target, self.pseudonyms)
        except NotFoundError:
            if not earlier:
                raise
            record = earlier[-1]  # no corpus has them: only removed versions came back
        for earlier_record in earlier:
            record = merge_records(record, earlier_record)
        return record

    def _tokens(self, target: ErasureTarget) -> set[str]:
        return {token(self.pseudonyms, target.kind, target.value)}

    def _records_with(self, tokens: Collection[str]) -> list[ErasureRecord]:
        """Return earlier erasures, oldest first; found by their tokens because the scans may be gone."""
        records = [
            ErasureRecord.model_validate(self.store.read_json(f"{RECORDS}/{name}"))
            for name in self.store.listdir(RECORDS)
            if name.endswith(".json")
        ]
        return sorted(
            (r for r in records if not set(tokens).isdisjoint(r.suppressed)), key=lambda r: (r.times, r.ident)
        )

    def _came_back(self, record: ErasureRecord) -> bool:
        """Return whether erased scans or removed versions are in the store again, e.g. restored from a backup."""
        return bool(reappeared_versions(self.store, record.doomed)) or any(
            has_erased_scans(self.store, version, record) for version in self.store.versions("corpus")
        )

    def _receipt_of(self, record: ErasureRecord) -> SignedReceipt | None:
        path = _receipt_path(record)
        return SignedReceipt.model_validate(self.store.read_json(path)) if self.store.exists(path) else None

    def _write_record(self, record: ErasureRecord) -> None:
        self.store.write_bytes(f"{RECORDS}/{record.ident}.json", record.model_dump_json(indent=1).encode())

    def _tainted(self, record: ErasureRecord) -> set[Key]:
        """Return the versions that may hold erased data, in the present store."""
        manifests = all_manifests(self.store)
        holding = [key for key in manifests if key[0] == "corpus" and has_erased_scans(self.store, key[1], record)]
        known = [key_of(version) for version in record.doomed]
        return affected_versions(manifests, [*known, *holding, *with_unlisted_rows(self.store, manifests)]) & set(
            manifests
        )

    def _rebuild_corpora(self, record: ErasureRecord) -> set[Key]:
        """Rebuild the newest affected corpora from themselves, so that no source has to be read again."""
        affected = [self.store.manifest(*key) for key in self._tainted(record) if key[0] == "corpus"]
        bases = {corpus.inputs.get("corpus") for corpus in affected}
        newest = [corpus for corpus in affected if corpus.version not in bases]
        steps = [purged_corpus(corpus, list_digest(self.store)) for corpus in newest]
        for step in steps:
            self._make_corpus(step)
        return {("corpus", step.version) for step in steps}

    def _rebuild_release(self, record: ErasureRecord) -> int | None:
        """Rebuild and promote the current release if it has the erased scans; return its number, None without any."""
        while release_numbers(self.store):
            release = read_release(self.store)
            if self._tainted(record).isdisjoint(release.pins.items()):
                return release.number
            update = ReleaseUpdate.of(self.store, release)
            corpus, *steps = update.purge_steps(list_digest(self.store))
            self._make_corpus(corpus)
            no_source = Source("", "", 0, 0, False)
            for _ in run_stages(
                self.store, update.config, no_source, steps, self.ray_address, self.progress_of, self.executor
            ):
                pass
            try:
                return promote(self.store, steps[-1].version, None).release.number
            except LostRaceError:
                log.info("another process promoted a release in the meantime: checking it, too")
        return None

    def _make_corpus(self, step: Step) -> None:
        self.progress_of("purge corpus")(0, 0, "removing the erased scans")
        make_rebuilt(self.store, step, self.pseudonyms)

    def _purge(self, record: ErasureRecord) -> list[str]:
        """Delete all versions that hold erased data or derive from such a version; return their names.

        Caches are emptied of files that no remaining version has.
        """
        # Before the check for running jobs: attempts that this process has claimed would count as running.
        discard_attempts(self.store, abandoned_attempts(self.store, claim=True))
        manifests = all_manifests(self.store)
        to_delete = sorted(self._tainted(record), key=lambda key: _removal_order(key, manifests[key]))
        self._check_not_in_use(to_delete)
        # Recorded before the first deletion: a resumed erasure cannot see versions that are already deleted.
        removed = sorted({*record.doomed, *map(name_of, to_delete)})
        self._write_record(record.model_copy(update={"doomed": tuple(removed)}))
        kept = {key: manifest for key, manifest in manifests.items() if key not in to_delete}
        remove_versions(self.store, to_delete, kept)
        # Files of versions whose manifests an interrupted purge had already removed.
        remove_unreferenced_files(self.store)
        self.sweep_caches(sorted({entry.sha256 for m in kept.values() if m is not None for entry in m.files}))
        return removed

    def _check_not_in_use(self, to_delete: Sequence[Key]) -> None:
        busy = (inputs_of_live_attempts(self.store) | busy_versions(self.store)).intersection(to_delete)
        if busy:
            kind, version = sorted(busy)[0]
            raise StoreError(
                f"a running job uses {kind}/{version}, which must be deleted: wait for it or stop it, "
                "then run the same command again (the scans are already hidden from searches)"
            )


def _removal_order(key: Key, manifest: Manifest | None) -> tuple[int, int, Key]:
    """Sort derived versions first, corpora last and the newest corpus at the end.

    While a corpus exists, a resumed purge can still find the versions that derive from it.
    """
    generation = manifest.counts.generation if manifest and isinstance(manifest.counts, CorpusCounts) else 0
    return -artefact_kinds().index(key[0]), generation, key


def _receipt_path(record: ErasureRecord) -> str:
    return f"{RECEIPTS}/{record.ident}.json"


def sweep_node_cache(kept: Collection[str]) -> None:
    """Remove all files from this node's cache except those with the given SHA-256; other stores fetch theirs again.

    Versions that were removed long ago may have left files that no manifest names any more.

    Raises:
        StoreError: a file cannot be removed.
    """
    if (cache := Cache.of_this_node()) is not None:
        cache.keep_only(frozenset(kept))


def cache_sweeper(store: Store, ray_address: str | None, here: bool) -> SweepCaches:
    """Return the function that sweeps caches: of this node for a local store, else of every node of the cluster."""
    if store.local or here:
        return sweep_node_cache

    def sweep_all_nodes(kept: Sequence[str]) -> None:
        from mrcg.execution import ray_environment

        ray_environment.prepare()
        from mrcg_jobs.ray_runtime import cluster
        from mrcg_jobs.ray_runtime.executor import on_every_node

        cluster.start(ray_address)
        on_every_node(sweep_node_cache, kept)
        sweep_node_cache(kept)

    return sweep_all_nodes
