"""Raster images: PNG, JPEG, TIFF, WebP and BMP with 8 or 16 bits, in grey, colour or with a palette."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from mrcg.config.settings import ReadSettings
from mrcg.errors import ImageError
from mrcg.imaging.slices import Grey, Reading, ScanFacts, Slice, check_size, finish, stretch

#: Formats that Pillow tries; the file name does not matter.
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")


def read_raster(data: bytes, settings: ReadSettings) -> Reading:
    """Return the slice of an image file. Only the first page of a TIFF and the first frame of a WebP are read.

    Colour is converted to luma; 16-bit, 32-bit and float levels are stretched between percentiles.

    Raises:
        ImageError: not_an_image, too_many_pixels, too_small, truncated, unreadable, not_finite or blank.
    """
    return Reading([Slice(finish(_to_grey(_open(data, settings)), settings), 0, ScanFacts())])


def _open(data: bytes, settings: ReadSettings) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Only the decompression bomb warning matters here; damaged metadata is no reason to refuse the pixels.
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
            "too_many_pixels", f"the image is a decompression bomb, the limit is {settings.max_pixels:,} pixels"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError("not_an_image", f"the file is not one of {', '.join(FORMATS)}") from error
    except MemoryError:
        raise
    except OSError as error:
        raise ImageError("truncated", "the image ends early or is damaged") from error
    except Exception as error:
        # On damaged files decoders raise all kinds of errors (SyntaxError, struct.error, zlib.error, ...).
        raise ImageError("unreadable", f"the image cannot be decoded ({type(error).__name__})") from error
    return image


def _to_grey(image: Image.Image) -> Grey:
    if image.mode.startswith(("I", "F")):
        return stretch(np.asarray(image, dtype=np.float32))
    if image.mode == "P":
        image = image.convert("RGBA")  # Pillow warns when a palette with transparency is converted straight to RGB
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return np.asarray(image.convert("L"), dtype=np.uint8)
