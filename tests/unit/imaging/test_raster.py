import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
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
