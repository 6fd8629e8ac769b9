"""What the manifest of each kind counts.

A field without a default is in every manifest of its kind. Those that earlier versions of MRCG did not write have a
default that says so.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import ConfigDict, Field

from mrcg.frozen import Frozen


class Counts(Frozen):
    """Base of the counts of each kind. Fields that a later version of MRCG added are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow")

    #: Fields that `mrcg run` and `mrcg store ls` leave out of their tables.
    hidden: ClassVar[tuple[str, ...]] = ()

    def stated(self) -> dict[str, Any]:
        """Return the fields that the manifest states, as JSON values; defaults are left out."""
        return self.model_dump(mode="json", exclude_unset=True)

    def replaced_by(self, other: Counts) -> dict[str, Any]:
        """Return the fields that are stated here or in other counts, with the values of the other ones first."""
        return {**self.stated(), **other.stated()}


class CorpusCounts(Counts):
    """Counts of a corpus.

    Attributes:
        images: scans.
        quarantined: files and frames that are no scan of the corpus, by ``reasons``.
        groups: scans that a split keeps together.
        clusters: sets of near-duplicates.
        distinct: different pixel contents.
        without_patient: scans whose patient is not known: no id, or a placeholder; None if nobody counted them.
        undecided: scans whose id has no issuer while several issuers of the tenant have it.
        conflicts: copies whose labels differ.
        classes: scans by label.
        generation: corpora that this one extends, one after the other.
        files: of the source.
        files_read: in this ingestion; the others were read by earlier ones.
        source: name of the source, keyed if the corpus has pseudonyms.
    """

    hidden = ("source", "generation")

    images: int
    quarantined: int = 0
    reasons: dict[str, int] = Field(default_factory=dict)
    groups: int = 0
    clusters: int = 0
    distinct: int = 0
    patients: int = 0
    without_patient: int | None = None
    undecided: int = 0
    conflicts: int = 0
    classes: dict[str, int] = Field(default_factory=dict)
    generation: int = 0
    files: int = 0
    files_read: int = 0
    source: str = ""


class SplitCounts(Counts):
    """Scans by part, and ``classes`` by label and part."""

    protocol: str
    train: int = 0
    test: int = 0
    none: int = 0
    validation: int = 0
    classes: dict[str, dict[str, int]] = Field(default_factory=dict)


class FeatureCounts(Counts):
    """Scans whose trunk features are stored, and the number of features of each."""

    images: int
    width: int


class EncoderCounts(Counts):
    """Epochs of a training, the best of them, and its fingerprint."""

    hidden = ("fingerprint",)

    epochs: int
    best_epoch: int = 0
    validation_map: float | None = None
    fingerprint: str = ""


class EmbeddingCounts(Counts):
    """Embedded images, and the facts of their vectors (``mrcg.encoder.appearance.EmbeddingFacts``).

    ``encoder`` and ``trained_dim`` are unset in earlier versions, whose vectors have no appearance part.
    """

    hidden = ("fingerprint", "encoder", "dim", "trained_dim")

    images: int = 0
    fingerprint: str
    dim: int
    encoder: str | None = None
    trained_dim: int | None = None


class IndexCounts(Counts):
    """Indexed images, the kind of the index, its shards and parts, and its measured recall@50 with its ``effort``."""

    images: int = 0
    kind: str = ""
    shards: int = 0
    parts: int = 0
    shard_sizes: list[int] = Field(default_factory=list)
    effort: int = 0
    recall_at_50: float


class GraphCounts(Counts):
    """Queries by part."""

    train: int = 0
    held_out: int = 0
    validation: int = 0
    test: int = 0


class RerankerCounts(Counts):
    """Epochs of a training, and the best of them."""

    epochs: int
    best_epoch: int = 0
    validation_map: float | None = None


class ReportCounts(Counts):
    """Main figures of a report. Earlier ones have no gain, no figures of a served order and no known items."""

    protocol: str
    queries: int
    ann_map: float
    reranked_map: float
    gain_low: float | None = None
    gain_high: float | None = None
    served_map: float | None = None
    known_first: float | None = None


class TrialCounts(Counts):
    """Protocol and number of the measured epochs."""

    protocol: str
    epochs: int
