"""Raster images: PNG, JPEG, TIFF, WebP and BMP with 8 or 16 bits, in grey, colour or with a palette.

They are read as a viewer shows them: turned by their EXIF orientation, transparency over the background, with the
colour profile and the gamma that the file states.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from mrcg.config.settings import ReadSettings
from mrcg.errors import ImageError
from mrcg.imaging.slices import Grey, Reading, ScanFacts, Slice, check_size, finish, stretch

#: Formats that Pillow tries; the file name does not matter.
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")
#: Gamma of a PNG that states none; one within this distance of it changes no grey level that one could see.
_GAMMA, _GAMMA_TOLERANCE = 1 / 2.2, 0.02
_BLACK = (0, 0, 0)


def read_raster(data: bytes, settings: ReadSettings) -> Reading:
    """Return the slice of an image file. Only the first page of a TIFF and the first frame of a WebP are read.

    Colour is converted to luma. Transparent pixels show the background that a PNG declares, else black. 16-bit, 32-bit
    and float levels are stretched between percentiles.

    Raises:
        ImageError: not_an_image, too_many_pixels, too_small, truncated, unreadable, not_finite or blank.
    """
    return Reading([Slice(finish(_to_grey(_open(data, settings), data), settings), 0, ScanFacts())])


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


def _to_grey(image: Image.Image, data: bytes) -> Grey:
    image = _upright(image)
    if image.mode.startswith(("I", "F")):
        return stretch(np.asarray(image, dtype=np.float32))
    facts = image.info
    alpha = None
    if image.has_transparency_data:
        below = Image.new("RGB", image.size, _background(image, data))
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    image = _in_srgb(image, facts.get("icc_profile"))
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    gamma = facts.get("gamma", _GAMMA)
    if "icc_profile" not in facts and "srgb" not in facts and gamma > 0 and abs(gamma - _GAMMA) > _GAMMA_TOLERANCE:
        levels = [round(255 * _srgb((level / 255) ** (1 / gamma))) for level in range(256)]
        image = image.point(levels * len(image.getbands()))
    if alpha is not None:
        image = Image.composite(image.convert("RGB"), below, alpha)
    return np.asarray(image.convert("L"), dtype=np.uint8)


def _srgb(light: float) -> float:
    """Return the sRGB value of an amount of light, both from 0 to 1 (IEC 61966-2-1)."""
    return 12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055


def _upright(image: Image.Image) -> Image.Image:
    with contextlib.suppress(Exception), warnings.catch_warnings():
        # Damaged EXIF data is no reason to refuse the pixels, and it can raise any error.
        warnings.simplefilter("ignore")
        return ImageOps.exif_transpose(image)
    return image


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return the image in the colours of its ICC profile; unchanged without a profile that fits its pixels."""
    if not profile:
        return image
    try:
        stated = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(stated).lower():
            return image
        # A transform has no alpha; it is applied afterwards.
        pixels = image.convert("RGB") if image.mode in ("RGBA", "P") else image
        converted = ImageCms.profileToProfile(pixels, stated, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    return converted or image


def _background(image: Image.Image, data: bytes) -> tuple[int, int, int]:
    """Return the colour behind transparent pixels: what a PNG declares (chunk bKGD, which Pillow skips), else black."""
    if not data.startswith(b"\x89PNG"):
        return _BLACK
    depth, place = data[24], 8
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        body = data[place + 8 : place + 8 + length]
        if kind == b"bKGD":
            break
        place += 12 + length
    else:
        return _BLACK
    if length == 1:
        red, green, blue = (image.getpalette("RGB") or [])[3 * body[0] :][:3] or _BLACK
        return red, green, blue
    if length not in (2, 6):
        return _BLACK
    levels = [value * 255 // (2**depth - 1) for value in struct.unpack(f">{length // 2}H", body)]
    return (levels[0], levels[0], levels[0]) if length == 2 else (levels[0], levels[1], levels[2])
