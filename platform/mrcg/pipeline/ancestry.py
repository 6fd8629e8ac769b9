"""Choose the base of a new corpus: the newest corpus of the same source with the same settings.

See docs/corpus.md#incremental-ingestion.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mrcg.config.settings import Config
from mrcg.corpus.sources import Source
from mrcg.hashing import digest
from mrcg.pipeline.plan import Ancestry, corpus_settings
from mrcg.privacy.pseudonyms import Pseudonyms, missing_key_error
from mrcg.privacy.suppression import list_digest
from mrcg.stages.counts import CorpusCounts
from mrcg.storage.manifest import Manifest
from mrcg.storage.store import Store

log = logging.getLogger(__name__)

#: Settings that may differ between a corpus and its base.
_MAY_DIFFER = ("listing", "suppressed", "purged")


def source_name(source: Source, pseudonyms: Pseudonyms | None) -> str:
    """Return a hash of a source's location, keyed if there is a key: manifests must not tell names in the location."""
    return digest(source.location, 32) if pseudonyms is None else pseudonyms.name("source", source.location)


def ancestry_of(store: Store, config: Config, source: Source, pseudonyms: Pseudonyms | None) -> Ancestry:
    """Return the privacy policy, suppression list digest and base of the corpus to be made from this source.

    Raises:
        UsageError: the source may name patients and no pseudonym key is set.
    """
    if source.identifying and pseudonyms is None:
        raise missing_key_error("DICOM files, MATLAB files and manifests with a patient or study column")
    policy = None if pseudonyms is None else pseudonyms.policy()
    suppressed = list_digest(store)
    settings = corpus_settings(config, source, Ancestry(policy, suppressed, None))
    name = source_name(source, pseudonyms)
    related = [
        manifest
        for manifest in (store.manifest("corpus", version) for version in store.versions("corpus"))
        if manifest.counts_as(CorpusCounts).source == name and _must_match(manifest.settings) == _must_match(settings)
    ]
    # A corpus made by an erasure counts as the same one: it also lacks everything on the suppression list.
    same = [manifest for manifest in related if _without_purged(manifest.settings) == settings]
    if same:
        # The corpus exists already: keep its base, so that the version stays the same.
        return Ancestry(policy, suppressed, same[0].inputs.get("corpus"), "purged" in same[0].settings)
    if not related and (outdated := _of_earlier_policy(store, name, settings)):
        log.warning(
            "corpus/%s was made under an earlier privacy policy: the source is read again as a whole "
            "(`mrcg corpus migrate` does without, see docs/corpus.md#who-a-patient-is)",
            outdated,
        )
    newest = max(related, key=_generation, default=None)
    return Ancestry(policy, suppressed, None if newest is None else newest.version)


def _of_earlier_policy(store: Store, source: str, settings: Mapping[str, Any]) -> str | None:
    """Return the newest corpus of a source that differs only in the version of its privacy policy."""

    def but_policy(some: Mapping[str, Any]) -> dict[str, Any]:
        policy = some.get("policy")
        return {**_must_match(some), "policy": None if policy is None else policy["key"]}

    found = [
        manifest
        for manifest in (store.manifest("corpus", version) for version in store.versions("corpus"))
        if manifest.counts_as(CorpusCounts).source == source and but_policy(manifest.settings) == but_policy(settings)
    ]
    newest = max(found, key=_generation, default=None)
    return None if newest is None else newest.version


def _must_match(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in _MAY_DIFFER}


def _without_purged(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "purged"}


def _generation(manifest: Manifest) -> tuple[int, str]:
    return manifest.counts_as(CorpusCounts).generation, manifest.version
