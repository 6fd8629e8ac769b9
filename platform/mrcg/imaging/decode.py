"""Decode an image file into checked, normalised grey pixels."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from mrcg.errors import ImageError

#: Formats that are tried, whatever the file is called.
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")

Grey = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Limits:
    """What an image may be; beyond it, it is refused with a reason."""

    max_bytes: int
    max_pixels: int
    min_side: int
    max_side: int


def decode(data: bytes, limits: Limits) -> Grey:
    """Pixels of one image as grey levels.

    Colour is averaged to luma, 16-bit and float levels are stretched between their 0.5th and 99.5th
    percentile, and an image longer than ``max_side`` is shrunk to it.

    Args:
        data: content of an image file.
        limits: bounds in bytes and pixels.

    Returns:
        (height, width) grey levels 0..255.

    Raises:
        ImageError: with reason empty, too_many_bytes, not_an_image, too_many_pixels, too_small,
            truncated, unreadable or blank.
    """
    if not data:
        raise ImageError("empty", "the file has no bytes")
    if len(data) > limits.max_bytes:
        raise ImageError("too_many_bytes", f"{len(data):,} bytes, the limit is {limits.max_bytes:,}")
    grey = _to_grey(_open(data, limits))
    if grey.min() == grey.max():
        raise ImageError("blank", "all pixels are equal")
    return _shrink(grey, limits.max_side)


def _open(data: bytes, limits: Limits) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > limits.max_pixels:
            raise _too_many_pixels(f"{width}x{height} pixels", limits)
        if min(width, height) < limits.min_side:
            raise ImageError("too_small", f"{width}x{height} pixels, the shorter side must have {limits.min_side}")
        image.load()
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels("a decompression bomb", limits) from error
    except UnidentifiedImageError as error:
        raise ImageError("not_an_image", f"not one of {', '.join(FORMATS)}") from error
    except OSError as error:
        raise ImageError("truncated", f"the image ends early or is damaged: {error}") from error
    except Exception as error:
        # Decoders raise what they like on damaged files (SyntaxError, struct.error, zlib.error, ...).
        raise ImageError("unreadable", f"{type(error).__name__}: {error}") from error
    return image


def _too_many_pixels(what: str, limits: Limits) -> ImageError:
    return ImageError("too_many_pixels", f"{what}, the limit is {limits.max_pixels:,} pixels")


def _to_grey(image: Image.Image) -> Grey:
    if image.mode.startswith(("I", "F")):
        return _stretch(np.asarray(image, dtype=np.float64))
    if image.mode == "P":
        image = image.convert("RGBA")  # Pillow warns where a palette has transparency and goes straight to RGB
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return np.asarray(image.convert("L"), dtype=np.uint8)


def _stretch(levels: npt.NDArray[np.float64]) -> Grey:
    if not np.isfinite(levels).all():
        raise ImageError("not_finite", "pixels are NaN or infinite")
    low, high = np.percentile(levels, (0.5, 99.5))
    if high <= low:
        low, high = levels.min(), levels.max()
    if high <= low:
        raise ImageError("blank", "all pixels are equal")
    grey: Grey = np.round(np.clip((levels - low) / (high - low), 0.0, 1.0) * 255).astype(np.uint8)
    return grey


def _shrink(grey: Grey, max_side: int) -> Grey:
    height, width = grey.shape
    scale = max_side / max(height, width)
    if scale >= 1:
        return grey
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.LANCZOS))


def resize(grey: Grey, side: int) -> Grey:
    """Grey pixels resized to a square with antialiasing: (height, width) -> (side, side).

    One function for training, indexing and serving, so that no query is resized in another way.
    """
    return np.asarray(Image.fromarray(grey).resize((side, side), Image.Resampling.BILINEAR))


def pixel_hash(grey: Grey) -> str:
    """BLAKE2b-128 of shape and pixels, hex: equal for exact copies alone."""
    state = hashlib.blake2b(f"{grey.shape[0]}x{grey.shape[1]}".encode(), digest_size=16)
    state.update(grey.tobytes())
    return state.hexdigest()


def image_id(source_key: str, frame: int, pixels: str) -> str:
    """128-bit id of an image, hex (DESIGN §2): stable when a source is ingested again.

    Args:
        source_key: what names the file within its source.
        frame: frame or slice within the file.
        pixels: its ``pixel_hash``.
    """
    return hashlib.blake2b(f"{source_key}\x1f{frame}\x1f{pixels}".encode(), digest_size=16).hexdigest()
