"""Splits: assign scans to gallery and test queries (docs/method.md#protocols).

Random draws depend on the seed and an id, never on the order of the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mrcg.arrays import Mask
from mrcg.config.settings import SplitSettings
from mrcg.errors import SourceError
from mrcg.hashing import draw
from mrcg.storage import schemas
from mrcg.storage.store import Artefact

#: The file of a version of kind ``splits``.
SPLITS = "splits.parquet"
TRAIN_NAMES = frozenset({"train", "training"})
TEST_NAMES = frozenset({"test", "testing"})
#: Recognised as a split but used for neither part: the validation part is drawn from the training part.
VALIDATION_NAMES = frozenset({"val", "valid", "validation"})
_COLUMNS = ("image_id", "label", "group_id", "joins", "source_split", "fold")


@dataclass(frozen=True)
class Fold:
    """One of ``count`` parts of the encoder's training scans, for cross-fitting.

    An encoder is trained without the fold, so that the fold's scans are unseen by it.
    """

    number: int
    count: int

    def __str__(self) -> str:
        return f"fold {self.number + 1}/{self.count}"

    def members(self, groups: Sequence[str], seed: int) -> npt.NDArray[np.bool_]:
        """Return the (n,) mask of the scans in this fold: whole groups, each drawn independently of the others."""
        return np.array([int(draw(seed, "fold", group) * self.count) == self.number for group in groups], dtype=bool)


def make_splits(scans: pa.Table, settings: SplitSettings, seed: int) -> pa.Table:
    """Assign each scan to a part of the split.

    Args:
        scans: table of ``schemas.SCANS``.
        settings: the protocol and its fractions.
        seed: of the run.

    Returns:
        Table of ``schemas.SPLITS`` with the rows of ``scans``, in order. Unlabelled scans have split ``none``.

    Raises:
        SourceError: the train or the test part has no labelled scan.
    """
    rows = scans.select(_COLUMNS).to_pylist()
    splits = ["none" if row["label"] is None else _split(row, settings, seed) for row in rows]
    if not {"train", "test"} <= set(splits):
        raise SourceError(_empty_part_message(scans, settings))

    def part_of_train(purpose: str, fraction: float) -> list[bool]:
        return [
            split == "train" and draw(seed, purpose, row["group_id"]) < fraction
            for split, row in zip(splits, rows, strict=True)
        ]

    validation = part_of_train("validation", settings.validation_fraction)
    drawn = part_of_train("held out", settings.held_out_fraction)
    held_out = [is_drawn and not validates for is_drawn, validates in zip(drawn, validation, strict=True)]
    columns = {"image_id": scans["image_id"], "split": splits, "validation": validation, "held_out": held_out}
    return pa.table(columns, schema=schemas.SPLITS)


def _split(row: Mapping[str, Any], settings: SplitSettings, seed: int) -> str:
    match settings.protocol:
        case "paper":
            return _drawn(row["image_id"], settings, seed)
        case "dedup":
            # A scan that connects groups of both parts is in neither.
            parts = {_drawn(group, settings, seed) for group in (row["group_id"], *(row["joins"] or ()))}
            return parts.pop() if len(parts) == 1 else "none"
        case "given":
            name = (row["source_split"] or "").lower()
            return "train" if name in TRAIN_NAMES else "test" if name in TEST_NAMES else "none"
        case "folds":
            return "none" if row["fold"] is None else "test" if row["fold"] == settings.test_fold else "train"


def _drawn(key: str, settings: SplitSettings, seed: int) -> str:
    """Draw train or test for one id, independently of all other ids and with the same fraction for every class.

    Exact stratification would depend on the other scans: a scan that is added or erased could then move others from one
    part to the other, and a model would be tested on scans that it was trained on.
    """
    return "train" if draw(seed, "split", key) < settings.train_fraction else "test"


def _empty_part_message(scans: pa.Table, settings: SplitSettings) -> str:
    if scans["label"].null_count == scans.num_rows:
        return (
            "no scan has a label: with a pseudonym key, folder names are labels only if ingest.classes lists them "
            "(--set 'ingest.classes=[glioma,meningioma]'); set it, or use a manifest with a column label"
        )
    groups = set(scans["group_id"].to_pylist())
    if settings.protocol == "dedup" and len(groups) == 1:
        one = scans["patient"].null_count == 0 and pc.count_distinct(scans["patient"]).as_py() == 1
        kind = "of one patient" if one else "in one group (one id, one study, or near-duplicates)"
        return (
            f"protocol {settings.protocol}: all {scans.num_rows} scans are {kind}, and a group is never divided; "
            "if their id is a placeholder, add it to ingest.unknown_patients, else add scans of others"
        )
    return (
        f"protocol {settings.protocol}: the train or the test part has no labelled scan; "
        "add scans or set another split.protocol (given: folders train and test; folds: folders fold0, fold1, …)"
    )


class Split:
    """A version of kind ``splits``.

    Attributes:
        image_ids: of the rows of the corpus.
        train: (n,) mask over the rows of the corpus: the training part, which is the gallery of the evaluation.
        test: mask of the test queries.
        validation: mask of the validation part, a subset of ``train``.
        held_out: mask of the scans that the encoder does not see, a subset of ``train`` disjoint from ``validation``.
    """

    def __init__(self, artefact: Artefact) -> None:
        table = schemas.from_parquet(artefact.read_bytes(SPLITS))
        self.image_ids: pa.ChunkedArray = table["image_id"]
        names = np.array(table["split"].to_pylist())
        self.train: Mask = names == "train"
        self.test: Mask = names == "test"
        self.validation: Mask = np.array(table["validation"].to_pylist(), dtype=bool)
        self.held_out: Mask = np.array(table["held_out"].to_pylist(), dtype=bool)

    @property
    def fit(self) -> Mask:
        """Mask of the scans the released encoder is trained on: ``train`` without the validation and held-out scans."""
        return self.train & ~self.validation & ~self.held_out

    def seen(self, groups: Sequence[str], fold: Fold | None, seed: int) -> Mask:
        """Return the mask of the training scans of the released encoder, or of the encoder that leaves a fold out."""
        return self.fit if fold is None else self.fit & ~fold.members(groups, seed)

    def lookups(self, groups: Sequence[str], fold: Fold | None, seed: int) -> Lookups:
        """Return the queries and the gallery of the query graphs.

        Without a fold, every part is looked up in the training part. With a fold, its scans are looked up in the scans
        that its encoder was trained on.
        """
        if fold is None:
            parts = {"train": self.fit, "held_out": self.held_out, "validation": self.validation, "test": self.test}
            return Lookups(parts, self.train)
        seen = self.seen(groups, fold, seed)
        return Lookups({"train": self.fit & ~seen}, seen)


@dataclass(frozen=True)
class Lookups:
    """The queries of each part and the gallery that is searched, as masks over the rows of the corpus."""

    queries: dict[str, Mask]
    gallery: Mask
