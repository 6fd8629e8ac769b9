"""Protocols: who is gallery, who is query (DESIGN §3). Draws depend on a key, never on the order of rows."""

from __future__ import annotations

import pyarrow as pa

from mrcg import schemas
from mrcg.config import SplitSettings
from mrcg.errors import SourceError
from mrcg.hashing import draw

TRAIN_NAMES = frozenset({"train", "training"})
TEST_NAMES = frozenset({"test", "testing"})
#: Known as a split, part of neither: our validation part is drawn from the training part.
VALIDATION_NAMES = frozenset({"val", "valid", "validation"})


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
    splits = [
        "none" if label is None else _split(settings, seed, image, group, given, fold)
        for image, label, group, given, fold in zip(
            *(scans[name].to_pylist() for name in ("image_id", "label", "group_id", "source_split", "fold")),
            strict=True,
        )
    ]
    if not {"train", "test"} <= set(splits):
        raise SourceError(
            f"protocol {settings.protocol}: the train or the test part has no labelled scan; "
            "bring more scans or set another split.protocol (given: folders train and test; folds: fold0, fold1, …)"
        )
    validation = [
        split == "train" and draw(seed, "validation", group) < settings.validation_fraction
        for split, group in zip(splits, scans["group_id"].to_pylist(), strict=True)
    ]
    return pa.table({"image_id": scans["image_id"], "split": splits, "validation": validation}, schema=schemas.SPLITS)


def _split(settings: SplitSettings, seed: int, image: str, group: str, given: str | None, fold: int | None) -> str:
    match settings.protocol:
        case "paper":
            return "train" if draw(seed, "split", image) < settings.train_fraction else "test"
        case "dedup":
            return "train" if draw(seed, "split", group) < settings.train_fraction else "test"
        case "given":
            name = (given or "").lower()
            return "train" if name in TRAIN_NAMES else "test" if name in TEST_NAMES else "none"
        case "folds":
            return "none" if fold is None else "test" if fold == settings.test_fold else "train"
