import gzip
import os

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff

from mrcg.config.settings import ReadSettings
from mrcg.errors import ImageError
from mrcg.imaging.nifti import is_nifti, read_nifti
from mrcg.imaging.sequences import PLANES

SETTINGS = ReadSettings(max_voxels=50_000, volume_planes=("axial", "coronal", "sagittal"), volume_slices=0)
AXIAL = SETTINGS.model_copy(update={"volume_planes": ("axial",)})
#: Axes point right, to the front and up; the spread of the slices differs along each axis.
VOLUME = (np.random.default_rng(0).normal(0, 1, (16, 18, 20)) * np.geomspace(1, 900, 20)).astype(np.int16)
AFFINE = np.array([[1.0, 0, 0, -8], [0, 2, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]])


def nifti(volume=VOLUME, affine=AFFINE, kind=nibabel.Nifti1Image):
    return kind(volume, affine).to_bytes()


def patched(at, data, source=None):
    source = source or nifti()
    return source[:at] + data + source[at + len(data) :]


def everything(reading):
    assert not reading.refused
    return [(one.frame, one.facts, one.pixels.tobytes(), one.pixels.shape) for one in reading.slices]


def reason(data, settings=SETTINGS):
    with pytest.raises(ImageError) as caught:
        read_nifti(data, settings)
    return caught.value.reason


EXPECTED = everything(read_nifti(nifti(), SETTINGS))


def stretched(volume=VOLUME):
    low, high = np.percentile(volume, (0.5, 99.5))
    return np.clip((volume - low) / (high - low), 0, 1) * 255


@given(st.permutations(range(3)), st.tuples(*[st.sampled_from([1, -1])] * 3), st.booleans())
def test_the_order_in_which_voxels_are_stored_does_not_matter(order, flips, two):
    turn = np.array(list(zip(order, flips, strict=True)))
    volume, affine = apply_orientation(VOLUME, turn), AFFINE @ inv_ornt_aff(turn, VOLUME.shape)
    assert everything(
        read_nifti(nifti(volume, affine, nibabel.Nifti2Image if two else nibabel.Nifti1Image), SETTINGS)
    ) == (EXPECTED)


def test_planes_have_the_radiological_orientation():
    found = read_nifti(nifti(), SETTINGS).slices
    assert [one.facts.plane for one in found] == ["axial"] * 20 + ["coronal"] * 18 + ["sagittal"] * 16
    levels = stretched()
    for one in found:
        axis, number = PLANES.index(one.facts.plane), one.frame % 100_000
        naive = np.take(levels, number, axis=axis).T[::-1, ::-1]
        assert np.abs(one.pixels - naive).max() <= 0.51
        assert one.facts.position == number * (1, 2, 3)[axis]
        assert one.facts.spacing == {"axial": 2, "coronal": 3, "sagittal": 3}[one.facts.plane]
    assert len({one.frame for one in found}) == len(found)


def test_right_is_on_the_left_and_front_and_head_are_at_the_top():
    volume = np.random.default_rng(0).integers(0, 50, VOLUME.shape).astype(np.int16)
    volume[-4:, -4:, -4:] = 1000
    for one in read_nifti(nifti(volume), SETTINGS).slices:
        # Rightmost, frontmost and topmost: the upper left corner in every plane.
        if one.frame % 100_000 == (15, 17, 19)[PLANES.index(one.facts.plane)]:
            assert (one.pixels[:4, :4] == 255).all()
            assert one.pixels[4:, 4:].max() < 50


def test_an_oblique_volume_is_read_along_the_nearest_axes():
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    assert [one[2] for one in everything(read_nifti(nifti(affine=turn @ AFFINE), SETTINGS))] == [
        one[2] for one in EXPECTED
    ]


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_versions_and_compression(kind):
    plain = nifti(kind=kind)
    for data in (plain, gzip.compress(plain), gzip.compress(plain[:900]) + gzip.compress(plain[900:])):
        assert is_nifti(data)
        assert everything(read_nifti(data, SETTINGS)) == EXPECTED
    assert not any(map(is_nifti, (b"", b"\x1f\x8bnothing", gzip.compress(b"words" * 200), b"words" * 200)))


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.float32, np.float64])
def test_types_of_voxels(kind):
    volume = (VOLUME - VOLUME.min()) % 256
    expected = everything(read_nifti(nifti(volume.astype(np.int16)), SETTINGS))
    assert everything(read_nifti(nifti(volume.astype(kind)), SETTINGS)) == expected


def test_slope_and_intercept_are_applied():
    image = nibabel.Nifti1Image(VOLUME, AFFINE)
    image.header.set_slope_inter(0.5, 100)
    assert everything(read_nifti(image.to_bytes(), SETTINGS)) == EXPECTED, "they cancel out when levels are stretched"
    image.header.set_slope_inter(-1, 0)
    first = read_nifti(image.to_bytes(), AXIAL).slices[0].pixels
    assert np.abs(first - stretched(-VOLUME)[::-1, ::-1, 0].T).max() <= 0.51


@given(st.integers(1, 25), st.integers(0, 25))
def test_every_kth_slice_and_of_those_the_most_informative(step, most):
    settings = AXIAL.model_copy(update={"volume_step": step, "volume_slices": most})
    numbers = [one.frame % 100_000 for one in read_nifti(nifti(), settings).slices]
    # The spread of this volume grows with the slice number.
    stepped = list(range(0, 20, step))
    assert numbers == (stepped[-most:] if most else stepped)


@pytest.mark.parametrize("extra", [1, 2, 3])
def test_further_dimensions_of_size_one_are_ignored(extra):
    assert everything(read_nifti(nifti(VOLUME.reshape(*VOLUME.shape, *[1] * extra)), SETTINGS)) == EXPECTED


def test_a_plane_is_a_volume_of_one_slice():
    (one,) = read_nifti(nifti(VOLUME[:, :, 10]), AXIAL).slices
    assert np.abs(one.pixels - stretched(VOLUME[:, :, 10])[::-1, ::-1].T).max() <= 0.51


def test_only_the_blank_slice_is_refused():
    volume = VOLUME.copy()
    volume[:, :, 7] = 3
    reading = read_nifti(nifti(volume), AXIAL)
    assert [(one.frame % 100_000, one.reason) for one in reading.refused] == [(7, "blank")]
    assert len(reading.slices) == 19


def floats(value, inside=slice(3, 4)):
    """A volume with some voxels inside that have no finite value."""
    volume = VOLUME.astype(np.float32)
    volume[inside, inside, inside] = value
    return volume


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_background_without_values_is_black_and_the_slices_say_how_much_of_them_it_is(value):
    volume = VOLUME.astype(np.float32)
    volume[:3] = volume[:, :, -2:] = value
    finite = np.isfinite(volume)
    reading = read_nifti(nifti(volume), AXIAL)
    assert [(one.frame, one.reason) for one in reading.refused] == [(200_018, "blank"), (200_019, "blank")]
    assert [one.facts.masked for one in reading.slices] == [3 / 16] * 18
    expected = np.where(finite, 0, 0).astype(np.uint8)
    low, high = np.percentile(volume[finite], (0.5, 99.5))
    expected[finite] = np.round(np.clip((volume[finite] - low) * 255 / (high - low), 0, 255))
    for number, one in enumerate(reading.slices):
        assert np.abs(one.pixels.astype(int) - expected[::-1, ::-1, number].T).max() <= 1


def test_a_single_voxel_without_a_value_is_black():
    reading = read_nifti(nifti(floats(np.nan)), AXIAL)
    assert len(reading.slices) == 20
    assert [one.frame for one in reading.slices if one.facts.masked] == [200_003]
    assert read_nifti(nifti(), AXIAL).slices[3].facts.masked is None


ACQUIRED = SETTINGS.model_copy(update={"volume_planes": "acquired"})


def stack(axis, thickness, slices=20, side=32):
    """Slices of some thickness along an axis, and the zooms of their volume."""
    shape, zooms = [side] * 3, [1.0] * 3
    shape[axis], zooms[axis] = slices, thickness
    return np.random.default_rng(axis).integers(0, 1000, shape).astype(np.int16), np.diag([*zooms, 1.0])


@pytest.mark.parametrize(("axis", "plane"), list(enumerate(["sagittal", "coronal", "axial"])))
@pytest.mark.parametrize("thickness", [1.3, 5.0])
def test_a_volume_is_cut_along_the_plane_in_which_it_was_acquired(axis, plane, thickness):
    slices = read_nifti(nifti(*stack(axis, thickness)), ACQUIRED).slices
    assert {one.facts.plane for one in slices} == {plane}
    assert {one.pixels.shape for one in slices} == {(32, 32)}
    assert len(slices) == 20


def test_where_no_axis_is_thicker_the_header_says_along_which_slices_were_made_else_they_are_axial():
    volume, affine = stack(0, 1.0, 32)
    image = nibabel.Nifti1Image(volume, affine)
    assert {one.facts.plane for one in read_nifti(image.to_bytes(), ACQUIRED).slices} == {"axial"}
    image.header.set_dim_info(slice=1)
    assert {one.facts.plane for one in read_nifti(image.to_bytes(), ACQUIRED).slices} == {"coronal"}
    turned = nibabel.Nifti1Image(volume, affine[[1, 0, 2, 3]])
    turned.header.set_dim_info(slice=1)
    assert {one.facts.plane for one in read_nifti(turned.to_bytes(), ACQUIRED).slices} == {"sagittal"}


@pytest.mark.parametrize(("slices", "expected"), [(8, "too_small"), (20, "thin_plane")])
def test_strips_through_a_stack_of_thick_slices_never_become_scans(slices, expected):
    data = nifti(*stack(0, 5.0, slices))
    with pytest.raises(ImageError, match="sagittal") as caught:
        read_nifti(data, AXIAL)
    assert caught.value.reason == expected
    # A plane that is too thin does not take the good one along.
    reading = read_nifti(data, SETTINGS)
    assert {one.facts.plane for one in reading.slices} == {"sagittal"}
    assert [(one.frame, one.reason) for one in reading.refused] == [(200_000, expected), (100_000, expected)]


COLOUR = np.zeros(VOLUME.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (nifti(np.stack([VOLUME, VOLUME], axis=3)), "four_dimensional"),
        (nifti(VOLUME[..., None, None].repeat(3, axis=4)), "four_dimensional"),
        (nifti(VOLUME[:, 0, 0]), "not_a_volume"),
        (nifti(COLOUR), "colour"),
        (nifti(floats(np.nan, slice(2, 6))), "not_finite"),
        (nifti(floats(np.inf, slice(2, 6))), "not_finite"),
        (nifti(np.full(VOLUME.shape, 5, np.int16)), "blank"),
        (nifti(affine=np.diag([1, 1, 60, 1.0])), "absurd_spacing"),
        (nifti(affine=np.diag([0.001, 1, 1, 1.0])), "absurd_spacing"),
        (nifti(np.zeros((40, 40, 40), np.int8)), "too_many_pixels"),
        (nifti()[:-1], "truncated"),
        (nifti()[:360], "truncated"),
        (gzip.compress(nifti())[:-200], "truncated"),
        (gzip.compress(nifti()) + b"more", "truncated"),
        (patched(344, b"ni1\0"), "detached_header"),
        (patched(4, b"ni2\0", nifti(kind=nibabel.Nifti2Image)), "detached_header"),
        (gzip.compress(patched(344, b"ni1\0")), "detached_header"),
        (nifti()[:100], "unreadable"),
        (patched(70, b"\xff\x7f"), "unreadable"),
        (patched(312, bytes(12)), "unreadable"),
    ],
)
def test_unusable_files_are_refused_with_a_reason(data, expected):
    assert reason(data) == expected


def test_decompression_stops_at_the_limit():
    limit = SETTINGS.max_voxels * 8
    bomb = gzip.compress(nifti()[:352] + bytes(limit * 20))
    assert len(bomb) < limit / 10
    assert is_nifti(bomb)
    assert reason(bomb) == "too_many_pixels"
    noise = gzip.compress(nifti() + os.urandom(limit + 2**17))
    assert reason(noise) == "too_many_pixels"


def test_the_largest_allowed_volume_is_read():
    exact = SETTINGS.model_copy(update={"max_voxels": VOLUME.size})
    assert everything(read_nifti(nifti(), exact)) == EXPECTED
    assert everything(read_nifti(gzip.compress(nifti()), exact)) == EXPECTED
    assert reason(nifti(), exact.model_copy(update={"max_voxels": VOLUME.size - 1})) == "too_many_pixels"


def test_the_largest_allowed_volume_of_the_widest_type_is_read():
    exact = SETTINGS.model_copy(update={"max_voxels": VOLUME.size})
    assert everything(read_nifti(gzip.compress(nifti(VOLUME.astype(np.float64))), exact)) == EXPECTED


@pytest.mark.filterwarnings("ignore")
def test_complex_voxels_are_refused():
    assert reason(nifti(VOLUME.astype(np.complex64))) == "colour"


def test_the_limit_applies_to_every_plane():
    settings = SETTINGS.model_copy(update={"max_pixels": 16 * 18})
    reading = read_nifti(nifti(), settings)
    assert [(one.frame, one.reason) for one in reading.refused] == [
        (100_000, "too_many_pixels"),
        (0, "too_many_pixels"),
    ]
    assert {one.facts.plane for one in reading.slices} == {"axial"}
    assert len(read_nifti(nifti(), settings.model_copy(update={"volume_planes": ("axial",)})).slices) == 20


@given(st.integers(0, 351), st.binary(min_size=1, max_size=8))
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_header_gives_slices_or_a_reason(at, noise):
    try:
        reading = read_nifti(patched(at, noise), SETTINGS)
        assert all(one.pixels.ndim == 2 for one in reading.slices)
    except ImageError as error:
        assert error.reason
