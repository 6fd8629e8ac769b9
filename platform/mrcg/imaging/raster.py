"""Raster files: PNG, JPEG, TIFF, WebP, BMP, of 8 or 16 bits, grey, colour or palette."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from mrcg.config.settings import ReadSettings
from mrcg.errors import ImageError
from mrcg.imaging.slices import Facts, Grey, Reading, Slice, check_size, finish, stretch

#: Formats that are tried, whatever the file is called.
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")


def read_raster(data: bytes, settings: ReadSettings) -> Reading:
    """The one slice of an image file; further pages of a TIFF or frames of a WebP are not read.

    Colour is averaged to luma, 16-bit and float levels are stretched between their percentiles.

    Raises:
        ImageError: not_an_image, too_many_pixels, too_small, truncated, unreadable, not_finite or blank.
    """
    return Reading([Slice(finish(_to_grey(_open(data, settings)), settings), 0, Facts())])


def _open(data: bytes, settings: ReadSettings) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Only Pillow's own limit matters here; damaged metadata is no reason to refuse pixels.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            check_size(height, width, settings)
            image.load()
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            "too_many_pixels", f"a decompression bomb, the limit is {settings.max_pixels:,} pixels"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError("not_an_image", f"not one of {', '.join(FORMATS)}") from error
    except MemoryError:
        raise
    except OSError as error:
        raise ImageError("truncated", "the image ends early or is damaged") from error
    except Exception as error:
        # Decoders raise what they like on damaged files (SyntaxError, struct.error, zlib.error, ...).
        raise ImageError("unreadable", f"the decoder gave up ({type(error).__name__})") from error
    return image


def _to_grey(image: Image.Image) -> Grey:
    if image.mode.startswith(("I", "F")):
        return stretch(np.asarray(image, dtype=np.float32))
    if image.mode == "P":
        image = image.convert("RGBA")  # Pillow warns where a palette has transparency and goes straight to RGB
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return np.asarray(image.convert("L"), dtype=np.uint8)
