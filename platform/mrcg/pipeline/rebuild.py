"""Corpora made from their base alone, without reading a source: after an erasure, or under a new privacy policy."""

from __future__ import annotations

import time

from mrcg.config.settings import IngestSettings
from mrcg.corpus.assembly import AssembledCorpus, assemble_corpus
from mrcg.corpus.ingestion import Rules
from mrcg.corpus.listing import known_files
from mrcg.errors import NotFoundError, UsageError
from mrcg.pipeline.plan import Step
from mrcg.pipeline.update import migrated_corpus
from mrcg.privacy.pseudonyms import ENVIRONMENT, POLICY_VERSION, Pseudonyms
from mrcg.privacy.suppression import list_digest, suppressed
from mrcg.stages.counts import CorpusCounts
from mrcg.storage.attempts import Attempt, begin
from mrcg.storage.manifest import FileEntry, Manifest, make_manifest
from mrcg.storage.store import Artefact, Store


def migrate_corpus(store: Store, base: Manifest, pseudonyms: Pseudonyms | None) -> Manifest:
    """Make a corpus under the present privacy policy from one of an earlier policy, and return it.

    Only what is stored is used: who assigned the ids is known as far as tenants and sites tell, and ids that were
    written in several ways stay several (docs/corpus.md#who-a-patient-is).

    Raises:
        UsageError: the corpus has no pseudonyms, or those of another key.
        NotFoundError: the corpus is already under the present policy.
    """
    policy = base.settings.get("policy")
    if policy is None:
        raise UsageError(f"corpus/{base.version} has no pseudonyms: there is nothing to migrate")
    if pseudonyms is None or pseudonyms.fingerprint != policy["key"]:
        raise UsageError(f"corpus/{base.version} was made with another pseudonym key: set {ENVIRONMENT} to that key")
    if policy["version"] == POLICY_VERSION:
        raise NotFoundError(f"corpus/{base.version} is under policy {POLICY_VERSION} already: nothing to migrate")
    step = migrated_corpus(base, pseudonyms.policy(), list_digest(store))
    make_rebuilt(store, step, pseudonyms)
    return store.manifest("corpus", step.version)


def make_rebuilt(store: Store, step: Step, pseudonyms: Pseudonyms | None) -> None:
    """Make the corpus of a step and publish it, if the store does not have it yet.

    Args:
        store: with the base, which is the input of the step.
        step: ``purged_corpus``, or that of a migration.
        pseudonyms: the key that the base was made with; not used if it was made without one.
    """
    if store.has("corpus", step.version):
        return
    base = store.artefact("corpus", step.inputs["corpus"])
    key = None if base.manifest.settings.get("policy") is None else pseudonyms
    with begin(store, "corpus", step.version, step.inputs) as attempt:
        corpus = rebuild(base, attempt, key, purge=step.settings["policy"] == base.manifest.settings["policy"])
        manifest = make_manifest("corpus", step.version, step.settings, step.inputs, corpus.counts, corpus.files)
        store.record_run(attempt.publish(manifest), {"started": time.time()})


def rebuild(base: Artefact, attempt: Attempt, pseudonyms: Pseudonyms | None, purge: bool) -> AssembledCorpus:
    """Assemble a corpus from its base alone, without the suppressed scans: no rows and no pixels of them.

    Args:
        base: corpus to make again; its source is not read.
        attempt: receives the files of the new corpus.
        pseudonyms: the key that the base was made with, None if it was made without one.
        purge: keep the privacy policy and leave no quarantine row of a suppressed scan either, as for an erasure;
            otherwise bring what is stored to the present policy.
    """
    settings = IngestSettings.model_validate(base.manifest.settings["ingest"])
    generation = base.manifest.counts_as(CorpusCounts).generation + 1
    rules = Rules(settings, pseudonyms, suppressed(attempt.store), generation)

    def write(name: str, data: bytes) -> FileEntry:
        return attempt.write(name, data)

    assembled = assemble_corpus([], base, known_files(base), rules, write, purge)
    # The base's counts identify its source: the next ingestion of that source extends this corpus.
    counts = CorpusCounts.model_validate(base.manifest.counts.replaced_by(assembled.counts))
    return AssembledCorpus(assembled.files, counts, assembled.bad_files, assembled.first_bad)
