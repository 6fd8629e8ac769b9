"""The output of every reader: grey slices with the few header facts that are kept (`docs/corpus.md#de-identification`).

Identifiers in ``ScanFacts`` are still raw. They exist only in memory: `mrcg.privacy.pseudonyms` turns them into
pseudonyms before anything is written.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from mrcg.config.settings import ReadSettings
from mrcg.errors import ImageError
from mrcg.imaging.lesion import Lesion

Grey = npt.NDArray[np.uint8]
Levels = npt.NDArray[np.float32]

#: A slice is blank if its most frequent grey level covers at least this fraction of its pixels.
BLANK = 0.999
#: Range of plausible pixel spacings in mm; a value outside it means that the header is wrong.
SPACING_MM = (0.01, 50.0)
#: Years that scans were made in; a year outside them is of another calendar or wrong.
YEARS = range(1970, 2101)
_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class ScanFacts:
    """Facts about a slice from an allow-list of header fields; None where the file does not state the fact.

    Attributes:
        label: class, if the format has one.
        patient, study, series, instance, accession: raw identifiers.
        issuer: who assigned the id of the patient, as ``mrcg.privacy.identity.issuer_name`` takes it.
        plane: axial, coronal or sagittal.
        sequence: T1, T1c, T2 or FLAIR.
        acquired: day of acquisition.
        position: mm along the normal of the slice, for sorting.
        spacing: mm between pixel rows.
        masked: share of the slice's pixels without a finite value, which are black; None if all have one.
        lesion: where the lesion lies and how it looks, if the format has a mask of it.
    """

    label: str | None = None
    patient: str | None = field(default=None, repr=False)
    issuer: str | None = field(default=None, repr=False)
    study: str | None = field(default=None, repr=False)
    series: str | None = field(default=None, repr=False)
    instance: str | None = field(default=None, repr=False)
    accession: str | None = field(default=None, repr=False)
    plane: str | None = None
    sequence: str | None = None
    acquired: datetime.date | None = field(default=None, repr=False)
    position: float | None = None
    spacing: float | None = None
    masked: float | None = None
    lesion: Lesion | None = None


@dataclass(frozen=True)
class Slice:
    """One slice: its (height, width) grey levels, its frame number within the file and its facts."""

    pixels: Grey
    frame: int
    facts: ScanFacts


@dataclass(frozen=True)
class Refusal:
    """A slice of a multi-slice file that cannot be used: its frame, the reason code and a message."""

    frame: int
    reason: str
    detail: str


@dataclass(frozen=True)
class Reading:
    """The slices of one file, and the slices of it that were refused."""

    slices: Sequence[Slice]
    refused: Sequence[Refusal] = ()


def first_day(texts: Iterable[str]) -> datetime.date | None:
    """Return the first day that texts begin with, as 20260131, 2026.01.31 or 2026-01-31; None if none does."""
    for text in texts:
        digits = text.replace(".", "").replace("-", "")[:8]
        try:
            day = datetime.datetime.strptime(digits, "%Y%m%d").date()
        except ValueError:
            continue
        if day.year in YEARS:
            return day
    return None


def stretch(levels: Levels, mask: npt.NDArray[np.bool_] | None = None) -> Grey:
    """Stretch intensities of any shape linearly to 0..255, from their 0.5th to their 99.5th percentile.

    If both percentiles are equal, the minimum and the maximum are used instead.

    Args:
        levels: intensities of one slice or of a whole volume.
        mask: True where pixels count; all others (padding) are ignored and become black.

    Raises:
        ImageError: not_finite, or blank if all pixels are equal or padding.
    """
    inside = levels if mask is None else levels[mask]
    if inside.size == 0:
        raise ImageError("blank", "all pixels are padding")
    if not np.isfinite(inside).all():
        raise ImageError("not_finite", "some pixels are NaN or infinite")
    low, high = np.percentile(inside, _PERCENTILES)
    if high <= low:
        low, high = inside.min(), inside.max()
    if high <= low:
        raise ImageError("blank", "all pixels are equal")
    grey = to_grey((np.nan_to_num(levels) - low) * (255.0 / (float(high) - float(low))))
    if mask is not None:
        grey[~mask] = 0
    return grey


def to_grey(levels: npt.NDArray[np.floating]) -> Grey:
    """Clip levels to 0..255 and round them to whole grey levels."""
    grey: Grey = np.round(np.clip(levels, 0.0, 255.0)).astype(np.uint8)
    return grey


def check_size(height: int, width: int, settings: ReadSettings) -> None:
    """Check the size of a slice against the limits; call it before the pixels are decoded.

    Raises:
        ImageError: too_many_pixels or too_small.
    """
    if height * width > settings.max_pixels:
        raise ImageError(
            "too_many_pixels", f"the image has {width}x{height} pixels, the limit is {settings.max_pixels:,} pixels"
        )
    if min(height, width) < settings.min_side:
        raise ImageError(
            "too_small", f"the image has {width}x{height} pixels, the shorter side must have {settings.min_side}"
        )


def check_spacing(spacing: Sequence[float]) -> None:
    """Check that spacings in mm are plausible.

    Raises:
        ImageError: absurd_spacing.
    """
    if any(not SPACING_MM[0] <= value <= SPACING_MM[1] for value in spacing):
        stated = " x ".join(f"{value:g}" for value in spacing)
        raise ImageError(
            "absurd_spacing", f"a spacing of {stated} mm is outside {SPACING_MM[0]:g} to {SPACING_MM[1]:g} mm"
        )


def finish(grey: Grey, settings: ReadSettings) -> Grey:
    """Refuse a blank slice and shrink one whose longer side exceeds ``max_side``: the last step of every reader.

    Raises:
        ImageError: blank.
    """
    image = as_image(grey)
    commonest = max(image.histogram())
    if commonest >= BLANK * grey.size:
        raise ImageError("blank", f"{100 * commonest / grey.size:.1f} % of the pixels are equal")
    height, width = grey.shape
    scale = settings.max_side / max(height, width)
    if scale >= 1:
        return grey
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


def as_image(grey: Grey) -> Image.Image:
    """Return a Pillow image of grey levels; it shares their memory if they are contiguous."""
    height, width = grey.shape
    return Image.frombuffer("L", (width, height), np.ascontiguousarray(grey), "raw", "L", 0, 1)


def resize(grey: Grey, side: int) -> Grey:
    """Resize grey pixels to a square with antialiasing: (height, width) -> (side, side).

    Training, indexing and serving all use this function, so that queries are resized exactly like the gallery.
    """
    return np.asarray(as_image(grey).resize((side, side), Image.Resampling.BILINEAR))


def pixel_hash(grey: Grey) -> str:
    """Return the BLAKE2b-128 hash of shape and pixels in hex; only exact copies have equal hashes."""
    state = hashlib.blake2b(f"{grey.shape[0]}x{grey.shape[1]}".encode(), digest_size=16)
    state.update(np.ascontiguousarray(grey).data)
    return state.hexdigest()


def image_id(source_key: str, frame: int, pixels_hash: str) -> str:
    """Return the 128-bit id of an image in hex; it stays the same when a source is ingested again.

    Args:
        source_key: the stored key of the file within its source.
        frame: number of the frame or slice within the file.
        pixels_hash: ``pixel_hash`` of the image.
    """
    return hashlib.blake2b(f"{source_key}\x1f{frame}\x1f{pixels_hash}".encode(), digest_size=16).hexdigest()
