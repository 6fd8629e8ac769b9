"""A release that changes without a training: same models, a gallery that grew or shrank (DESIGN §2).

What a release was made by is in its manifests, so nobody has to say it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mrcg.config.loading import parse_config, with_overrides
from mrcg.config.settings import Config
from mrcg.corpus.sources import Source
from mrcg.pipeline.stages import STAGES, Ancestry, Stage, Step, corpus_settings
from mrcg.releases.release import Release
from mrcg.storage.manifest import Manifest, derive_version
from mrcg.storage.store import Store

_STAGE: Mapping[str, Stage] = {stage.kind: stage for stage in STAGES}
#: Parts whose queries a report needs; the training part taught the reranker already.
MEASURED = ("validation", "test")


@dataclass(frozen=True)
class ReleaseUpdate:
    """The line of artefacts behind a release, and the settings that made it."""

    config: Config
    release: Release
    manifests: Mapping[str, Manifest]

    @classmethod
    def of(cls, store: Store, release: Release, overrides: Iterable[str] = ()) -> ReleaseUpdate:
        """The line of a release.

        Args:
            store: that holds it.
            release: whose models stay.
            overrides: ``a.b=value`` each, of what does not make a model: index, evaluate, release, serve, compute.

        Raises:
            NotFoundError, IntegrityError: a manifest of the line is absent or was changed.
            SettingsError: an override is not allowed.
        """
        report = store.manifest("reports", release.report)
        found = {"reports": report}
        for kind in ("splits", "embeddings", "graphs", "rerankers", "corpus"):
            found[kind] = store.manifest(kind, report.inputs[kind])
        found["indexes"] = store.manifest("indexes", release.index)
        found["encoders"] = store.manifest("encoders", release.encoder)
        tree: dict[str, Any] = {}
        for manifest in found.values():
            for key, value in manifest.settings.items():
                if key in Config.model_fields:
                    tree[key] = value
        config = with_overrides(parse_config(tree, f"manifests of release {release.number}"), overrides)
        return cls(config, release, found)

    def steps(self, source: Source, ancestry: Ancestry) -> tuple[Step, ...]:
        """What has to be done after the source changed: ingest, split, embed, index, graphs, report."""
        settings = corpus_settings(self.config, source, ancestry)
        inputs = {} if ancestry.base is None else {"corpus": ancestry.base}
        return self._after(_step("corpus", settings, inputs), purge=False)

    def purged(self, suppressed: str) -> tuple[Step, ...]:
        """What has to be done after somebody was put on the suppression list: all that without them."""
        return self._after(purged_corpus(self.manifests["corpus"], suppressed), purge=True)

    def _after(self, corpus: Step, purge: bool) -> tuple[Step, ...]:
        made = {kind: one.version for kind, one in self.manifests.items()} | {"corpus": corpus.version}
        steps = [corpus]

        def add(kind: str, base: bool = False, **more: Any) -> None:
            stage, old = _STAGE[kind], self.manifests[kind]
            settings = {**old.settings, **stage.settings(self.config), **more}
            # Settings of an earlier growth are not those of this one.
            settings = {key: value for key, value in settings.items() if key in more or key not in ("purge", "parts")}
            inputs = {name: made[name] for name in stage.inputs}
            if base and all(old.settings.get(k) == v for k, v in stage.settings(self.config).items()):
                inputs[kind] = old.version
            steps.append(_step(kind, settings, inputs))
            made[kind] = steps[-1].version

        add("splits")
        add("embeddings", base=True)
        stays = not (purge and _may_memorise(self.manifests["indexes"]))
        add("indexes", base=stays, **({"purge": True} if purge else {}))
        add("graphs", parts=list(MEASURED))
        add("reports")
        return tuple(steps)


def _may_memorise(index: Manifest) -> bool:
    """Whether a cell may be the very vector of a scan that went before: when an index just grows nobody looks."""
    grew = "indexes" in index.inputs and not index.settings.get("purge")
    return grew and index.counts.get("kind") not in ("flat", "hnsw")


def purged_corpus(base: Manifest, suppressed: str) -> Step:
    """The corpus that is made from another one alone, without those who are on the list."""
    settings = {**base.settings, "suppressed": suppressed, "purged": True}
    return _step("corpus", settings, {"corpus": base.version})


def _step(kind: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> Step:
    return Step(_STAGE[kind], derive_version(kind, settings, inputs), settings, inputs)
