"""What every reader gives: grey slices with the few facts that are kept of a header (DESIGN §5).

Identifiers in ``Facts`` are still raw. They live in memory only: `mrcg.privacy.pseudonyms` turns them into
pseudonyms before anything is written.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from mrcg.config.settings import ReadSettings
from mrcg.errors import ImageError

Grey = npt.NDArray[np.uint8]
Levels = npt.NDArray[np.float32]

#: A slice whose most frequent level covers this much of it shows nothing.
BLANK = 0.999
#: Pixel spacing in mm beyond which a header is wrong and not the scan.
SPACING_MM = (0.01, 50.0)
_WINDOW = (0.5, 99.5)


@dataclass(frozen=True)
class Facts:
    """What a file says of a slice, from an allow-list of its header fields; None where it says nothing.

    Attributes:
        label: class, where the format has one.
        patient, study, series, instance, accession: raw identifiers.
        plane: axial, coronal or sagittal.
        sequence: T1, T1c, T2 or FLAIR.
        acquired: day.
        position: mm along the normal of the slice, for sorting.
        spacing: mm between pixel rows.
    """

    label: str | None = None
    patient: str | None = field(default=None, repr=False)
    study: str | None = field(default=None, repr=False)
    series: str | None = field(default=None, repr=False)
    instance: str | None = field(default=None, repr=False)
    accession: str | None = field(default=None, repr=False)
    plane: str | None = None
    sequence: str | None = None
    acquired: datetime.date | None = field(default=None, repr=False)
    position: float | None = None
    spacing: float | None = None


@dataclass(frozen=True)
class Slice:
    """One slice: (height, width) grey levels, its number within the file and its facts."""

    pixels: Grey
    frame: int
    facts: Facts


@dataclass(frozen=True)
class Refusal:
    """A slice of many that cannot be used."""

    frame: int
    reason: str
    detail: str


@dataclass(frozen=True)
class Reading:
    """What a reader found in one file."""

    slices: Sequence[Slice]
    refused: Sequence[Refusal] = ()


def stretch(levels: Levels, counted: npt.NDArray[np.bool_] | None = None) -> Grey:
    """Grey levels between the 0.5th and 99.5th percentile of (any shape) levels.

    Args:
        levels: intensities of one slice or of a whole volume.
        counted: pixels that count; the others (padding) become black.

    Raises:
        ImageError: not_finite, or blank where all levels are equal.
    """
    inside = levels if counted is None else levels[counted]
    if inside.size == 0:
        raise ImageError("blank", "all pixels are padding")
    if not np.isfinite(inside).all():
        raise ImageError("not_finite", "pixels are NaN or infinite")
    low, high = np.percentile(inside, _WINDOW)
    if high <= low:
        low, high = inside.min(), inside.max()
    if high <= low:
        raise ImageError("blank", "all pixels are equal")
    grey = to_grey((np.nan_to_num(levels) - low) * (255.0 / (float(high) - float(low))))
    if counted is not None:
        grey[~counted] = 0
    return grey


def to_grey(levels: npt.NDArray[np.floating]) -> Grey:
    """Levels that are meant for 0..255, rounded and cut to it."""
    grey: Grey = np.round(np.clip(levels, 0.0, 255.0)).astype(np.uint8)
    return grey


def check_size(height: int, width: int, settings: ReadSettings) -> None:
    """Whether a slice of this size is taken; asked before its pixels are decoded.

    Raises:
        ImageError: too_many_pixels or too_small.
    """
    if height * width > settings.max_pixels:
        raise ImageError("too_many_pixels", f"{width}x{height} pixels, the limit is {settings.max_pixels:,} pixels")
    if min(height, width) < settings.min_side:
        raise ImageError("too_small", f"{width}x{height} pixels, the shorter side must have {settings.min_side}")


def check_spacing(spacing: Sequence[float]) -> None:
    """Whether these spacings in mm can be true.

    Raises:
        ImageError: absurd_spacing.
    """
    if any(not SPACING_MM[0] <= value <= SPACING_MM[1] for value in spacing):
        stated = " x ".join(f"{value:g}" for value in spacing)
        raise ImageError("absurd_spacing", f"a spacing of {stated} mm; {SPACING_MM[0]:g} to {SPACING_MM[1]:g} can be")


def finish(grey: Grey, settings: ReadSettings) -> Grey:
    """The last step of every reader: refuse what shows nothing, shrink what is larger than ``max_side``.

    Raises:
        ImageError: blank.
    """
    image = as_image(grey)
    most = max(image.histogram())
    if most >= BLANK * grey.size:
        raise ImageError("blank", f"{100 * most / grey.size:.1f} % of the pixels are equal")
    height, width = grey.shape
    scale = settings.max_side / max(height, width)
    if scale >= 1:
        return grey
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


def as_image(grey: Grey) -> Image.Image:
    """Grey levels as a Pillow image that shares their memory where it can."""
    height, width = grey.shape
    return Image.frombuffer("L", (width, height), np.ascontiguousarray(grey), "raw", "L", 0, 1)


def resize(grey: Grey, side: int) -> Grey:
    """Grey pixels resized to a square with antialiasing: (height, width) -> (side, side).

    One function for training, indexing and serving, so that no query is resized in another way.
    """
    return np.asarray(as_image(grey).resize((side, side), Image.Resampling.BILINEAR))


def pixel_hash(grey: Grey) -> str:
    """BLAKE2b-128 of shape and pixels, hex: equal for exact copies alone."""
    state = hashlib.blake2b(f"{grey.shape[0]}x{grey.shape[1]}".encode(), digest_size=16)
    state.update(np.ascontiguousarray(grey).data)
    return state.hexdigest()


def image_id(source_key: str, frame: int, pixels: str) -> str:
    """128-bit id of an image, hex (DESIGN §2): stable when a source is ingested again.

    Args:
        source_key: what names the file within its source, as it is stored.
        frame: frame or slice within the file.
        pixels: its ``pixel_hash``.
    """
    return hashlib.blake2b(f"{source_key}\x1f{frame}\x1f{pixels}".encode(), digest_size=16).hexdigest()
