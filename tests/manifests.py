"""Manifests whose counts a test states in part; the fields that every manifest of a kind has are filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mrcg.stages.counts import Counts
from mrcg.stages.registry import stage_of
from mrcg.storage import manifest
from mrcg.storage.manifest import FileEntry, Manifest

REQUIRED: Mapping[str, Mapping[str, Any]] = {
    "corpus": {"images": 0},
    "splits": {"protocol": "paper"},
    "features": {"images": 0, "width": 1},
    "encoders": {"epochs": 0},
    "embeddings": {"fingerprint": "ab", "dim": 1},
    "indexes": {"recall_at_50": 1.0},
    "rerankers": {"epochs": 0},
    "reports": {
        "protocol": "paper", "queries": 0, "ann_map": 0.0, "reranked_map": 0.0, "gain_low": 0.0, "gain_high": 0.0,
    },
    "trials": {"protocol": "paper", "epochs": 0},
}  # fmt: skip


def counts_of(kind: str, stated: Mapping[str, Any] | Counts) -> Counts:
    """Counts of a kind, typed."""
    if isinstance(stated, Counts):
        return stated
    return stage_of(kind).counts.model_validate({**REQUIRED.get(kind, {}), **stated})


def make_manifest(
    kind: str,
    version: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    counts: Mapping[str, Any] | Counts,
    files: Sequence[FileEntry],
) -> Manifest:
    """``mrcg.storage.manifest.make_manifest``, whose counts may be stated in part."""
    return manifest.make_manifest(kind, version, settings, inputs, counts_of(kind, counts), files)
