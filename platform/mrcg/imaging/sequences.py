"""MR sequence and plane of a slice, derived from header values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import get_args

import numpy as np

from mrcg.config.settings import Plane

PLANES: tuple[Plane, ...] = get_args(Plane)
SEQUENCES = ("T1", "T1c", "T2", "FLAIR")

_BEFORE = r"(?:^|[^a-z0-9]|[23]d|(?<![a-z])s)"
_FLAIR = re.compile(r"flair|dark.?fluid")
_T1 = re.compile(_BEFORE + r"t1(?![0-9])|mp2?-?rage|bravo|spgr")
_T2 = re.compile(_BEFORE + r"t2(?![0-9*]|[ _-]?star)")
_CONTRAST = re.compile(
    r"(?:^|[^a-z])(?:post)?(?:gd|gad\w*|dotarem|ce|post|contrast|km)(?:[^a-z]|$)|postcontrast"
    r"|\+ ?c(?![a-z])|t1\w?[ _+-]?c(?![a-z])"
)
_NO_CONTRAST = re.compile(r"(?:^|[^a-z])(?:pre|without|w/?o|non?|ohne)[ _-]*(?:gd|gad|contrast|ce|km)")


def sequence_of_text(text: str) -> str | None:
    """Return T1, T1c, T2 or FLAIR from a series description or file name; None if it names none of them."""
    words = text.lower()
    if _FLAIR.search(words) and not _T1.search(words):
        return "FLAIR"
    if _T1.search(words):
        # A T1 FLAIR is T1-weighted.
        return "T1c" if _CONTRAST.search(words) and not _NO_CONTRAST.search(words) else "T1"
    if _T2.search(words):
        return "T2"
    return None


def sequence_of_times(repetition: float | None, echo: float | None, inversion: float | None) -> str | None:
    """Return T1, T2 or FLAIR from repetition, echo and inversion time in ms of a spin echo at 1.5 to 3 T, else None."""
    if repetition is None or echo is None:
        return None
    if inversion is not None and inversion >= 1500 and echo >= 70 and repetition >= 4000:
        return "FLAIR"
    if echo <= 30 and repetition <= 1200:
        return "T1"
    if echo >= 70 and repetition >= 2000:
        return "T2"
    return None


def plane_of(orientation: Sequence[float]) -> str | None:
    """Return the plane nearest to a slice from its direction cosines (DICOM PS3.3 C.7.6.2.1.1); None if invalid.

    Args:
        orientation: six numbers, the row direction and the column direction.
    """
    normal = normal_of(orientation)
    return None if normal is None else PLANES[int(np.argmax(np.abs(normal)))]


def normal_of(orientation: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]] | None:
    """Return the unit normal of a slice, (3,); None if the orientation is not six finite numbers of two directions."""
    if len(orientation) != 6 or not np.isfinite(orientation).all():
        return None
    normal = np.cross(orientation[:3], orientation[3:])
    length = float(np.linalg.norm(normal))
    return None if length < 0.1 else normal / length
