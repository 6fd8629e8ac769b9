import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mrcg.imaging.changes import CHANGES, NOISE, add_noise, compress, crop, halve, relight, rotate

each_change = pytest.mark.parametrize("name", CHANGES)
seeds, sides = st.integers(0, 10_000), st.integers(16, 67)


def texture(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)


def rng(seed):
    return np.random.default_rng(seed)


@each_change
@given(seeds, sides, sides)
def test_a_change_gives_other_grey_levels_and_leaves_the_input_as_it_is(name, seed, height, width):
    grey = texture(seed, height, width)
    before = grey.copy()
    grey.flags.writeable = False
    changed = CHANGES[name](grey, rng(seed))
    assert (changed.dtype, changed.ndim) == (np.uint8, 2)
    assert (grey == before).all()
    assert changed.shape != grey.shape or (changed != grey).any()


@each_change
@given(seeds)
def test_equal_seeds_give_equal_changes(name, seed):
    grey = texture(seed, 21, 34)
    assert (CHANGES[name](grey, rng(seed)) == CHANGES[name](grey, rng(seed))).all()


@each_change
@pytest.mark.parametrize("shape", [(16, 16), (17, 16), (16, 41), (1, 1), (1, 30), (512, 3)])
def test_small_odd_and_narrow_scans_can_be_changed(name, shape):
    height, width = CHANGES[name](texture(1, *shape), rng(1)).shape
    assert height >= 1
    assert width >= 1


@each_change
def test_a_view_of_another_array_is_changed_as_its_copy_is(name):
    view = texture(2, 80, 60)[::2, 30:5:-1]
    assert (CHANGES[name](view, rng(3)) == CHANGES[name](view.copy(), rng(3))).all()


@pytest.mark.parametrize("name", ["rotated by 3°", "brightness and contrast ± 20 %", "cropped by 5 %", "noise"])
def test_changes_differ_between_seeds(name):
    grey = texture(4, 40, 40)
    made = [CHANGES[name](grey, rng(seed)) for seed in range(12)]
    assert len({changed.tobytes() for changed in made}) > 1


@each_change
def test_a_phantom_changes_a_little(name):
    grey = (100 + 60 * np.sin(np.arange(128)[:, None] / 9) + 40 * np.cos(np.arange(128) / 13)).astype(np.uint8)
    changed = CHANGES[name](grey, rng(5))
    side = np.array(Image.fromarray(changed).resize((128, 128))).astype(float)
    assert 0 < np.abs(side - grey).mean() < 35


@given(seeds, sides, sides)
def test_a_turned_scan_keeps_its_size_and_has_black_corners(seed, height, width):
    white = np.full((height, width), 255, np.uint8)
    turned = rotate(white, rng(seed))
    assert turned.shape == white.shape
    assert turned[height // 2, width // 2] == 255
    large = rotate(np.full((100, 100), 255, np.uint8), rng(seed))
    assert large[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [0, 0, 0, 0]


def test_a_scan_is_turned_by_three_degrees_to_either_side():
    line = np.zeros((201, 201), np.uint8)
    line[100] = 255
    rises = {
        round(float(turned[:, 190].argmax() - turned[:, 10].argmax()))
        for turned in (rotate(line, rng(s)) for s in range(12))
    }
    expected = round(180 * np.tan(np.radians(3)))
    assert {abs(rise) for rise in rises} <= {expected - 1, expected, expected + 1}
    assert min(rises) < 0 < max(rises)


@given(seeds, sides, sides)
def test_compression_is_that_of_a_jpeg_of_quality_60(seed, height, width):
    grey = texture(seed, height, width)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "JPEG", quality=60)
    changed = compress(grey, rng(seed))
    assert changed.shape == grey.shape
    assert (changed == np.asarray(Image.open(buffer))).all()


@given(seeds, sides, sides)
def test_light_changes_by_a_fifth_up_or_down(seed, height, width):
    grey = (80 + texture(seed, height, width) % 50).astype(np.uint8)
    changed, options = relight(grey, rng(seed)), []
    for brightness in (0.8, 1.2):
        bright = brightness * grey
        options += [bright.mean() + contrast * (bright - bright.mean()) for contrast in (0.8, 1.2)]
    assert min(np.abs(changed - option).max() for option in options) <= 0.5 + 1e-6


@given(seeds, st.integers(0, 255))
def test_a_uniform_scan_changes_in_brightness_alone_and_is_clipped(seed, level):
    changed = relight(np.full((16, 16), level, np.uint8), rng(seed))
    assert len(np.unique(changed)) == 1
    assert min(abs(int(changed[0, 0]) - min(255, factor * level)) for factor in (0.8, 1.2)) <= 0.5 + 1e-6


@given(seeds, st.integers(1, 67), st.integers(1, 67))
def test_a_crop_is_a_window_of_the_scan_that_lacks_a_twentieth_of_each_side(seed, height, width):
    grey = texture(seed, height, width)
    rows, columns = round(0.05 * height), round(0.05 * width)
    cropped = crop(grey, rng(seed))
    assert cropped.shape == (height - rows, width - columns)
    windows = [
        grey[top : top + height - rows, left : left + width - columns]
        for top in range(rows + 1)
        for left in range(columns + 1)
    ]
    assert any((cropped == window).all() for window in windows)


def test_a_crop_takes_from_both_sides():
    ramp = np.tile(np.arange(100, dtype=np.uint8), (100, 1))
    assert {int(crop(ramp, rng(seed))[0, 0]) for seed in range(100)} == set(range(6))


def test_noise_has_the_stated_spread_and_is_clipped():
    noisy = add_noise(np.full((200, 200), 128, np.uint8), rng(6)).astype(float)
    assert noisy.mean() == pytest.approx(128, abs=0.3)
    assert noisy.std() == pytest.approx(NOISE, rel=0.03)
    for level in (0, 255):
        extreme = add_noise(np.full((50, 50), level, np.uint8), rng(6))
        assert abs(extreme.astype(float) - level).max() < 6 * NOISE, "no wrap-around"


@given(seeds, st.integers(1, 67), st.integers(1, 67), st.integers(0, 255))
def test_half_the_resolution_has_half_the_pixels_on_each_side(seed, height, width, level):
    assert halve(texture(seed, height, width), rng(seed)).shape == (max(1, height // 2), max(1, width // 2))
    assert (halve(np.full((height, width), level, np.uint8), rng(seed)) == level).all()
