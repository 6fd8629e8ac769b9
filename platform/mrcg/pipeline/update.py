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
from mrcg.pipeline.stages import STAGES, Ancestry, Stage, Step, corpus_settings
from mrcg.releases.release import Release
from mrcg.storage.manifest import Manifest, derive_version
from mrcg.storage.store import Store

_STAGE: Mapping[str, Stage] = {stage.kind: stage for stage in STAGES}
#: Parts whose query graphs a report needs; those of the training part only train the reranker, which does not change.
MEASURED_PARTS = ("validation", "test")


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
        report = store.manifest("reports", release.report)
        manifests = {"reports": report}
        for kind in ("splits", "embeddings", "graphs", "rerankers", "corpus"):
            manifests[kind] = store.manifest(kind, report.inputs[kind])
        manifests["indexes"] = store.manifest("indexes", release.index)
        manifests["encoders"] = store.manifest("encoders", release.encoder)
        tree: dict[str, Any] = {}
        for manifest in manifests.values():
            for key, value in manifest.settings.items():
                if key in Config.model_fields:
                    tree[key] = completed(key, value) if isinstance(value, Mapping) else value
        config = with_overrides(parse_config(tree, f"manifests of release {release.number}"), overrides)
        return cls(config, release, manifests)

    def steps(self, source: Source, ancestry: Ancestry) -> tuple[Step, ...]:
        """Return the steps after the source changed: ingest, split, embed, build index and graphs, evaluate."""
        settings = corpus_settings(self.config, source, ancestry)
        inputs = {} if ancestry.base is None else {"corpus": ancestry.base}
        return self._after(_step("corpus", settings, inputs), purge=False)

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

        def add(kind: str, base: bool = False, **extra: Any) -> None:
            stage, old = _STAGE[kind], self.manifests[kind]
            settings = {**old.settings, **stage.settings(self.config), **extra}
            # The old manifest may come from an earlier update: its purge and parts do not apply to this one.
            settings = {key: value for key, value in settings.items() if key in extra or key not in ("purge", "parts")}
            inputs = {name: versions[name] for name in stage.inputs(self.config)}
            if base and all(old.settings.get(k) == v for k, v in stage.settings(self.config).items()):
                inputs[kind] = old.version
                if kind == "embeddings":
                    inputs.pop("splits", None)  # only a new appearance part is fitted on them
            steps.append(_step(kind, settings, inputs))
            versions[kind] = steps[-1].version

        add("splits")
        add("embeddings", base=True)
        extend_index = not (purge and _centroid_may_be_removed_scan(self.manifests["indexes"]))
        add("indexes", base=extend_index, **({"purge": True} if purge else {}))
        add("graphs", parts=list(MEASURED_PARTS))
        add("reports")
        return tuple(steps)


def _centroid_may_be_removed_scan(index: Manifest) -> bool:
    """Return whether a coarse centroid may equal the vector of a scan that an earlier update removed.

    Extending an index without a purge does not check for that; only the centroids of IVF indexes can be affected.
    """
    extended = "indexes" in index.inputs and not index.settings.get("purge")
    return extended and index.counts.get("kind") not in ("flat", "hnsw")


def purged_corpus(base: Manifest, suppressed: str) -> Step:
    """Return the step that makes a corpus from its base alone, without the suppressed scans."""
    settings = {**base.settings, "suppressed": suppressed, "purged": True}
    return _step("corpus", settings, {"corpus": base.version})


def _step(kind: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> Step:
    return Step(_STAGE[kind], derive_version(kind, settings, inputs), settings, inputs)
