"""Protocols: who is gallery, who is query (DESIGN §3). Draws depend on a key, never on the order of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mrcg.config.settings import SplitSettings
from mrcg.errors import SourceError
from mrcg.hashing import draw
from mrcg.storage import schemas
from mrcg.storage.store import Artefact

#: File of a version of kind ``splits``.
SPLITS = "splits.parquet"
TRAIN_NAMES = frozenset({"train", "training"})
TEST_NAMES = frozenset({"test", "testing"})
#: Known as a split, part of neither: our validation part is drawn from the training part.
VALIDATION_NAMES = frozenset({"val", "valid", "validation"})
_COLUMNS = ("image_id", "label", "group_id", "joins", "source_split", "fold")


@dataclass(frozen=True)
class Fold:
    """One of ``count`` parts of what the encoder learns from, left out in turn to see it with fresh eyes."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"fold {self.number + 1}/{self.count}"

    def members(self, groups: Sequence[str], seed: int) -> npt.NDArray[np.bool_]:
        """(n,) which scans are in this fold; whole groups, whatever else is there."""
        return np.array([int(draw(seed, "fold", group) * self.count) == self.number for group in groups], dtype=bool)


def make_splits(scans: pa.Table, settings: SplitSettings, seed: int) -> pa.Table:
    """The side table of a protocol.

    Args:
        scans: table of ``schemas.SCANS``.
        settings: the protocol and its fractions.
        seed: of the run.

    Returns:
        Table of ``schemas.SPLITS``, row for row. Unlabelled scans have split ``none``.

    Raises:
        SourceError: the source does not say what the protocol needs, or a part stays empty.
    """
    rows = scans.select(_COLUMNS).to_pylist()
    splits = ["none" if row["label"] is None else _split(row, settings, seed) for row in rows]
    if not {"train", "test"} <= set(splits):
        raise SourceError(_no_part(scans, settings))

    def part_of_train(purpose: str, fraction: float) -> list[bool]:
        return [
            split == "train" and draw(seed, purpose, row["group_id"]) < fraction
            for split, row in zip(splits, rows, strict=True)
        ]

    validation = part_of_train("validation", settings.validation_fraction)
    drawn = part_of_train("held out", settings.held_out_fraction)
    held_out = [one and not other for one, other in zip(drawn, validation, strict=True)]
    columns = {"image_id": scans["image_id"], "split": splits, "validation": validation, "held_out": held_out}
    return pa.table(columns, schema=schemas.SPLITS)


def _split(row: Mapping[str, Any], settings: SplitSettings, seed: int) -> str:
    match settings.protocol:
        case "paper":
            return _drawn(row["image_id"], settings, seed)
        case "dedup":
            # A scan that connects groups of different parts belongs to neither.
            parts = {_drawn(group, settings, seed) for group in (row["group_id"], *(row["joins"] or ()))}
            return parts.pop() if len(parts) == 1 else "none"
        case "given":
            name = (row["source_split"] or "").lower()
            return "train" if name in TRAIN_NAMES else "test" if name in TEST_NAMES else "none"
        case "folds":
            return "none" if row["fold"] is None else "test" if row["fold"] == settings.test_fold else "train"


def _drawn(key: str, settings: SplitSettings, seed: int) -> str:
    """Every class is drawn with the same fraction, each member for itself.

    Exact strata would need to know the other members: then one that comes or is erased could move them from one
    part to the other, and a model would be tested on what it was trained on.
    """
    return "train" if draw(seed, "split", key) < settings.train_fraction else "test"


def _no_part(scans: pa.Table, settings: SplitSettings) -> str:
    if scans["label"].null_count == scans.num_rows:
        return (
            "no scan has a label: with a pseudonym key, folder names are labels only where ingest.classes lists them "
            "(--set 'ingest.classes=[glioma,meningioma]'); or give a manifest with a column label"
        )
    return (
        f"protocol {settings.protocol}: the train or the test part has no labelled scan; "
        "bring more scans or set another split.protocol (given: folders train and test; folds: fold0, fold1, …)"
    )


Mask = npt.NDArray[np.bool_]


class Split:
    """A version of kind ``splits``, row for row as the corpus."""

    def __init__(self, artefact: Artefact) -> None:
        table = schemas.from_parquet(artefact.read_bytes(SPLITS))
        names = np.array(table["split"].to_pylist())
        self.train: Mask = names == "train"
        self.test: Mask = names == "test"
        self.validation: Mask = np.array(table["validation"].to_pylist(), dtype=bool)
        self.held_out: Mask = np.array(table["held_out"].to_pylist(), dtype=bool)

    @property
    def fit(self) -> Mask:
        """What the encoder learns from: the training part without what validates and what is held out."""
        return self.train & ~self.validation & ~self.held_out

    def seen(self, groups: Sequence[str], fold: Fold | None, seed: int) -> Mask:
        """What the encoder learns from, or the one that leaves a fold out."""
        return self.fit if fold is None else self.fit & ~fold.members(groups, seed)

    def lookups(self, groups: Sequence[str], fold: Fold | None, seed: int) -> Lookups:
        """Whose neighbours are looked up: everybody's, or those of the scans that a fold's encoder did not see."""
        if fold is None:
            parts = {"train": self.fit, "held_out": self.held_out, "validation": self.validation, "test": self.test}
            return Lookups(parts, self.train)
        seen = self.seen(groups, fold, seed)
        return Lookups({"train": self.fit & ~seen}, seen)


@dataclass(frozen=True)
class Lookups:
    """Queries by part, and the gallery that they are looked up in: masks over the rows of the corpus."""

    queries: dict[str, Mask]
    gallery: Mask
