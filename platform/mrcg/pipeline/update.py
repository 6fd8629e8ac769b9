"""Plan the update of a release: the same models over a changed gallery (docs/index.md#building-and-updating).

The settings come from the manifests of the release, so the caller does not repeat them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mrcg.config.loading import completed, parse_config, with_overrides
from mrcg.config.settings import Config
from mrcg.corpus.sources import Source
from mrcg.pipeline.plan import Ancestry, Step, corpus_settings
from mrcg.releases.release import Release
from mrcg.stages.counts import IndexCounts
from mrcg.stages.registry import OnUpdate, Stage, pipeline_stages, stage_of
from mrcg.storage.catalog import manifests_behind
from mrcg.storage.manifest import Manifest, derive_version
from mrcg.storage.store import Store


@dataclass(frozen=True)
class ReleaseUpdate:
    """Plans updates of a release.

    Attributes:
        config: settings that made the release, with overrides applied.
        release: whose models stay.
        manifests: of the artefacts behind the release, by kind.
    """

    config: Config
    release: Release
    manifests: Mapping[str, Manifest]

    @classmethod
    def of(cls, store: Store, release: Release, overrides: Iterable[str] = ()) -> ReleaseUpdate:
        """Read the manifests of a release and the settings in them.

        Args:
            store: that holds the release.
            release: whose models stay.
            overrides: ``a.b=value`` strings for settings that no model depends on: index, evaluate, release, serve,
                compute.

        Raises:
            NotFoundError: a manifest is missing.
            IntegrityError: a manifest was changed.
            SettingsError: an override is not allowed.
        """
        manifests = manifests_behind(store, "reports", release.report)
        tree: dict[str, Any] = {}
        for manifest in manifests.values():
            for key, value in manifest.settings.items():
                if key in Config.model_fields:
                    tree[key] = completed(key, value) if isinstance(value, Mapping) else value
        config = with_overrides(parse_config(tree, f"manifests of release {release.number}"), overrides)
        return cls(config, release, manifests)

    def steps(self, source: Source, ancestry: Ancestry) -> tuple[Step, ...]:
        """Return the steps after the source changed: all stages but those whose result stays (``OnUpdate.KEPT``)."""
        settings = corpus_settings(self.config, source, ancestry)
        inputs = {} if ancestry.base is None else {"corpus": ancestry.base}
        return self._after(_step(stage_of("corpus"), settings, inputs), purge=False)

    def purge_steps(self, suppressed: str) -> tuple[Step, ...]:
        """Return the steps of an erasure: the corpus without suppressed scans, and what is built from it.

        Args:
            suppressed: digest of the suppression list.
        """
        return self._after(purged_corpus(self.manifests["corpus"], suppressed), purge=True)

    def _after(self, corpus: Step, purge: bool) -> tuple[Step, ...]:
        """Return a corpus step and the steps that follow from it."""
        versions = {kind: manifest.version for kind, manifest in self.manifests.items()} | {"corpus": corpus.version}
        steps = [corpus]
        for stage in pipeline_stages():
            if stage.kind == corpus.stage.kind or stage.on_update is OnUpdate.KEPT or stage.kind not in self.manifests:
                continue
            old = self.manifests[stage.kind]
            settings = self._settings(stage, purge)
            inputs = {name: versions[name] for name in stage.inputs(self.config) if not stage_of(name).intermediate}
            if stage.on_update is OnUpdate.EXTENDED and self._can_extend(stage, purge):
                inputs = {name: version for name, version in inputs.items() if name not in stage.only_from_scratch}
                inputs[stage.kind] = old.version
            steps.append(_step(stage, settings, inputs))
            versions[stage.kind] = steps[-1].version
        return tuple(steps)

    def _settings(self, stage: Stage, purge: bool) -> dict[str, Any]:
        """Return the settings of a version that is made again."""
        extra = {**stage.update_settings, **(stage.purge_settings if purge else {})}
        # The old manifest may come from an earlier update, whose extra settings do not apply to this one.
        dropped = {*stage.update_settings, *stage.purge_settings}
        kept = {key: value for key, value in self.manifests[stage.kind].settings.items() if key not in dropped}
        return {**kept, **stage.recorded_settings(self.config), **extra}

    def _can_extend(self, stage: Stage, purge: bool) -> bool:
        """Return whether the version of the release can be extended: its settings are the same, and it is clean."""
        old = self.manifests[stage.kind]
        if purge and _centroid_may_be_removed_scan(old):
            return False
        return all(old.settings.get(key) == value for key, value in stage.recorded_settings(self.config).items())


def _centroid_may_be_removed_scan(old: Manifest) -> bool:
    """Return whether a coarse centroid of an index may equal the vector of a scan that an earlier update removed.

    Extending an index without a purge does not check for that; only the centroids of IVF indexes can be affected.
    """
    if old.kind != "indexes" or old.kind not in old.inputs or old.settings.get("purge"):
        return False
    return old.counts_as(IndexCounts).kind not in ("flat", "hnsw")


def purged_corpus(base: Manifest, suppressed: str) -> Step:
    """Return the step that makes a corpus from its base alone, without the suppressed scans."""
    settings = {**base.settings, "suppressed": suppressed, "purged": True}
    return _step(stage_of("corpus"), settings, {"corpus": base.version})


def migrated_corpus(base: Manifest, policy: Mapping[str, Any], suppressed: str) -> Step:
    """Return the step that makes a corpus under another privacy policy from its base alone."""
    settings = {**base.settings, "policy": dict(policy), "suppressed": suppressed}
    return _step(stage_of("corpus"), settings, {"corpus": base.version})


def _step(stage: Stage, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> Step:
    return Step(stage, derive_version(stage.kind, settings, inputs), settings, inputs)
