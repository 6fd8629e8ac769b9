"""Which corpus a new one grows from: the newest of the same source under the same settings (DESIGN §2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mrcg.config.settings import Config
from mrcg.corpus.sources import Source
from mrcg.hashing import digest
from mrcg.pipeline.stages import Ancestry, corpus_settings
from mrcg.privacy.pseudonyms import Pseudonyms, key_needed
from mrcg.privacy.suppression import list_digest
from mrcg.storage.manifest import Manifest
from mrcg.storage.store import Store

#: Settings that may differ between a corpus and the one it grows from.
_FREE = ("listing", "suppressed", "purged")


def source_name(source: Source, pseudonyms: Pseudonyms | None) -> str:
    """What a manifest calls a source: its place may hold names."""
    return digest(source.location, 32) if pseudonyms is None else pseudonyms.name("source", source.location)


def ancestry_of(store: Store, config: Config, source: Source, pseudonyms: Pseudonyms | None) -> Ancestry:
    """Privacy policy, suppression list and base of the corpus that this source would give.

    Raises:
        UsageError: the source names patients and there is no key.
    """
    if source.identifying and pseudonyms is None:
        raise key_needed("DICOM, MATLAB files and manifests with a patient column")
    policy = None if pseudonyms is None else pseudonyms.policy()
    found = Ancestry(policy, list_digest(store), None)
    wanted = corpus_settings(config, source, found)
    name = source_name(source, pseudonyms)
    related = [
        manifest
        for manifest in (store.manifest("corpus", version) for version in store.versions("corpus"))
        if manifest.counts.get("source") == name and _bound(manifest.settings) == _bound(wanted)
    ]
    # Made by an erasure it is the same corpus: what is on the list is not in it.
    same = [one for one in related if {k: v for k, v in one.settings.items() if k != "purged"} == wanted]
    if same:
        # It is there already, whatever it grew from.
        return Ancestry(policy, found.suppressed, same[0].inputs.get("corpus"), "purged" in same[0].settings)
    newest = max(related, key=_generation, default=None)
    return Ancestry(policy, found.suppressed, None if newest is None else newest.version)


def _bound(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in _FREE}


def _generation(manifest: Manifest) -> tuple[int, str]:
    return int(manifest.counts["generation"]), manifest.version
