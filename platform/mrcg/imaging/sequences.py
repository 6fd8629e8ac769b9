"""MR sequence and plane, read off what a header says of them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

PLANES = ("sagittal", "coronal", "axial")  # the axis (x, y, z) that the slices are stacked along
SEQUENCES = ("T1", "T1c", "T2", "FLAIR")

_EDGE = r"(?:^|[^a-z0-9])"
_FLAIR = re.compile(r"flair|dark.?fluid")
_T1 = re.compile(_EDGE + r"(?:s?3?d?[ _-]?)t1(?![0-9])|mprage|mp2rage|bravo|spgr|" + _EDGE + r"t1w")
_T2 = re.compile(_EDGE + r"t2(?![0-9*]|[ _-]?star)|" + _EDGE + r"t2w")
_CONTRAST = re.compile(
    r"(?:^|[^a-z])(?:gd|gad|gado\w*|dotarem|gadovist|ce|post|postcontrast|contrast|km)(?:[^a-z]|$)"
    r"|t1\w?[ _+-]?c(?:[^a-z]|$)"
)
_WITHOUT = re.compile(r"(?:^|[^a-z])(?:pre|without|w/?o|non?|ohne)[ _-]*(?:gd|gad|contrast|ce|km)")


def sequence_of_text(text: str) -> str | None:
    """T1, T1c, T2 or FLAIR as a series description or file name states it; None where it does not."""
    words = text.lower()
    if _FLAIR.search(words):
        return "FLAIR"
    if _T1.search(words):
        return "T1c" if _CONTRAST.search(words) and not _WITHOUT.search(words) else "T1"
    if _T2.search(words):
        return "T2"
    return None


def sequence_of_times(repetition: float | None, echo: float | None, inversion: float | None) -> str | None:
    """T1, T2 or FLAIR from repetition, echo and inversion time in ms, as spin echoes at 1.5 to 3 T have them."""
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
    """Plane nearest to a slice, from the direction cosines of its rows and columns (DICOM PS3.3 C.7.6.2.1.1).

    Args:
        orientation: six numbers, row direction and column direction.
    """
    normal = normal_of(orientation)
    return None if normal is None else PLANES[int(np.argmax(np.abs(normal)))]


def normal_of(orientation: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]] | None:
    """Unit vector across a slice, (3,); None where the orientation is not one."""
    if len(orientation) != 6 or not np.isfinite(orientation).all():
        return None
    normal = np.cross(orientation[:3], orientation[3:])
    length = float(np.linalg.norm(normal))
    return None if length < 0.1 else normal / length
