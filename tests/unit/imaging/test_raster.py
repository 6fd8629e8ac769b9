import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import ExifTags, Image, ImageCms, ImageOps
from tests.factories import bomb

from mrcg.config.settings import ReadSettings
from mrcg.errors import ImageError
from mrcg.imaging.readers import read
from mrcg.imaging.slices import Grey, image_id, pixel_hash, resize

LIMITS = ReadSettings(max_file_bytes=10_000_000, max_pixels=4_000_000, min_side=16, max_side=128)


def decode(data: bytes, settings: ReadSettings) -> Grey:
    (one,) = read(data, settings).slices
    return one.pixels


def encoded(pixels, kind="PNG", **options):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def slice_of(side=40):
    return np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8)


def reason(data, limits=LIMITS):
    with pytest.raises(ImageError) as caught:
        decode(data, limits)
    return caught.value.reason


@given(arrays.arrays(np.uint8, st.tuples(st.integers(16, 60), st.integers(16, 60))))
def test_lossless_grey_is_read_unchanged(pixels):
    if np.bincount(pixels.reshape(-1)).max() >= 0.999 * pixels.size:
        assert reason(encoded(pixels)) == "blank"
    else:
        assert (decode(encoded(pixels), LIMITS) == pixels).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
def test_formats_are_detected_by_content(kind):
    smooth = np.add.outer(np.arange(40), np.arange(40)).astype(np.uint8) * 3
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    grey = decode(encoded(smooth, kind, **options), LIMITS)
    assert grey.shape == (40, 40)
    assert np.abs(grey.astype(int) - smooth).mean() < 3


def test_colour_palette_and_alpha_become_grey():
    image = Image.fromarray(slice_of()).convert("RGBA")
    for mode in ("RGB", "RGBA", "P", "LA", "1"):
        out = io.BytesIO()
        image.convert(mode).save(out, "PNG")
        assert decode(out.getvalue(), LIMITS).shape == (40, 40)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_exif_says(kind, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    smooth = Image.fromarray(slice_of(6)).resize((40, 30), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    smooth.save(out, kind, exif=exif)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(out.getvalue()))).convert("L"))
    pixels = decode(out.getvalue(), LIMITS)
    assert pixels.shape == ((30, 40) if orientation < 5 else (40, 30))
    assert np.abs(pixels.astype(int) - shown).max() <= 1


def test_damaged_exif_data_turns_nothing():
    assert (decode(encoded(slice_of(), exif=b"Exif\0\0MM\0*\0\0\0\1"), LIMITS) == slice_of()).all()


def test_transparent_pixels_show_the_background():
    alpha = np.full((40, 40), 255, np.uint8)
    alpha[:20] = 0
    grey_alpha = np.dstack([slice_of(), alpha])
    assert (decode(encoded(grey_alpha), LIMITS) == np.where(alpha > 0, slice_of(), 0)).all()
    colour = np.dstack([slice_of()] * 3 + [alpha])
    assert (decode(encoded(colour), LIMITS) == np.where(alpha > 0, slice_of(), 0)).all()
    data = encoded(colour)
    chunk = b"bKGD" + struct.pack(">3H", 90, 90, 90)
    declared = data[:33] + struct.pack(">I", 6) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    assert (decode(declared, LIMITS) == np.where(alpha > 0, slice_of(), 90)).all()
    half = np.dstack([slice_of()] * 3 + [np.full((40, 40), 128, np.uint8)])
    assert np.abs(decode(encoded(half), LIMITS).astype(int) - slice_of().astype(int) * 128 / 255).max() <= 1


def test_a_transparent_colour_of_a_palette_shows_the_background():
    image = Image.fromarray(slice_of() // 64, "P")
    image.putpalette([value for level in (10, 80, 160, 240) for value in [level] * 3])
    out = io.BytesIO()
    image.save(out, "PNG", transparency=3)
    expected = np.array([10, 80, 160, 0], np.uint8)[slice_of() // 64]
    assert (decode(out.getvalue(), LIMITS) == expected).all()


def test_colours_are_those_of_the_profile():
    linear = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert (decode(encoded(slice_of(), icc_profile=linear), LIMITS) == slice_of()).all(), (
        "it is what a picture is anyway"
    )
    assert (decode(encoded(slice_of(), icc_profile=b"no profile"), LIMITS) == slice_of()).all()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert (decode(encoded(slice_of(), icc_profile=lab), LIMITS) == slice_of()).all(), "it does not fit these pixels"


def test_the_gamma_of_a_png_is_applied():
    data = encoded(slice_of())
    chunk = b"gAMA" + struct.pack(">I", 100_000)
    linear = data[:33] + struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    light = slice_of() / 255
    expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(decode(linear, LIMITS) - expected).max() <= 1


def test_sixteen_bits_are_stretched():
    levels = (np.add.outer(np.arange(40), np.arange(40)) * 10 + 1000).astype(np.uint16)
    grey = decode(encoded(levels), LIMITS)
    assert (grey.min(), grey.max()) == (0, 255)
    assert (np.diff(grey.astype(int), axis=1) >= 0).all()


def test_non_finite_floats_are_refused():
    levels = np.ones((40, 40), dtype=np.float32)
    levels[3, 3] = np.nan
    assert reason(encoded(levels, "TIFF")) == "not_finite"


def test_a_long_image_is_shrunk():
    assert decode(encoded(slice_of(300)), LIMITS).shape == (128, 128)
    assert decode(encoded(np.tile(slice_of(100), (1, 4))), LIMITS).shape == (32, 128)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (b"hello, I am a text file", "not_an_image"),
        (encoded(slice_of(), "JPEG")[:-400], "truncated"),
        (encoded(slice_of())[:300], "truncated"),
        (encoded(np.zeros((1, 1), np.uint8)), "too_small"),
        (bomb(20_000), "too_many_pixels"),
        (bomb(4000), "too_many_pixels"),
        (encoded(np.full((40, 40), 7, np.uint8)), "blank"),
        (b"x" * 10_000_001, "too_many_bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unusable_files_are_refused_with_a_reason(data, expected):
    assert reason(data) == expected


@given(st.binary(max_size=400), st.integers(0, 1600))
def test_damaged_files_give_pixels_or_a_reason(noise, at):
    data = encoded(slice_of())
    broken = data[:at] + noise + data[at + len(noise) :]
    try:
        assert decode(broken, LIMITS).ndim == 2
    except ImageError as error:
        assert error.reason


def test_ids_depend_on_source_frame_and_pixels():
    pixels = pixel_hash(slice_of())
    ids = {image_id("a", 0, pixels), image_id("b", 0, pixels), image_id("a", 1, pixels), image_id("a", 0, "other")}
    assert len(ids) == 4
    assert image_id("a", 0, pixels) in ids
    assert len(image_id("a", 0, pixels)) == 32
    assert pixel_hash(np.zeros((2, 8), np.uint8)) != pixel_hash(np.zeros((4, 4), np.uint8))


def test_resize_is_square():
    assert resize(np.tile(slice_of(), (1, 2)), 24).shape == (24, 24)
