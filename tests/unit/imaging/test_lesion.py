import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mrcg.imaging.lesion import measure_lesion
from mrcg.imaging.phantom import CLASSES, phantoms

SIDES = st.tuples(st.integers(2, 12), st.integers(2, 12))
slices = SIDES.flatmap(lambda side: st.tuples(arrays(np.uint8, side), arrays(np.bool_, side)))


def test_a_square_is_measured():
    grey, mask = np.full((100, 50), 51, np.uint8), np.zeros((100, 50), bool)
    mask[20:30, 10:20] = True
    grey[mask] = 204
    lesion = measure_lesion(grey, mask)
    assert (lesion.y, lesion.x, lesion.area) == (0.25, 0.3, 0.02)
    assert lesion.contrast == pytest.approx(153 / 255)


def test_only_pixels_near_the_lesion_are_its_surroundings():
    grey, mask = np.zeros((100, 100), np.uint8), np.zeros((100, 100), bool)
    mask[40:60, 40:60] = True
    grey[mask] = 100
    grey[:20] = 255
    assert measure_lesion(grey, mask).contrast == pytest.approx(100 / 255)
    # The surroundings end at the edge of the slice.
    mask[:], grey[:] = False, 0
    mask[:4, :4], grey[:4, :4] = True, 255
    assert measure_lesion(grey, mask).contrast == 1.0


@given(slices)
def test_facts_are_fractions_and_do_not_depend_on_the_size_of_the_slice(drawn):
    grey, mask = drawn
    lesion = measure_lesion(grey, mask)
    if not mask.any():
        assert lesion is None
        return
    assert 0 < lesion.y < 1
    assert 0 < lesion.x < 1
    assert lesion.area == mask.mean()
    if mask.all():
        assert lesion.contrast is None, "it has no surroundings"
    else:
        assert lesion.contrast is None or -1 <= lesion.contrast <= 1
    doubled = measure_lesion(*(np.kron(values, np.ones((2, 2), values.dtype)) for values in (grey, mask)))
    assert (doubled.y, doubled.x, doubled.area) == pytest.approx((lesion.y, lesion.x, lesion.area))


@given(slices)
def test_a_mirrored_slice_has_its_lesion_at_the_mirrored_place(drawn):
    grey, mask = drawn
    if (lesion := measure_lesion(grey, mask)) is not None:
        mirrored = measure_lesion(grey[:, ::-1], mask[:, ::-1])
        assert (mirrored.y, mirrored.x) == pytest.approx((lesion.y, 1 - lesion.x))


def test_phantoms_mark_their_lesions():
    for phantom in phantoms(40, 1):
        lesion = measure_lesion(phantom.pixels, phantom.lesion)
        assert (lesion is None) == (phantom.label == "no_tumor")
        if phantom.label == "pituitary_tumor":
            assert lesion.y > 0.6, "low"
            assert abs(lesion.x - 0.5) < 0.1, "on the midline"
        if lesion is not None:
            assert lesion.contrast > 0, "lesions are drawn brighter than the tissue"
            assert 0.003 < lesion.area < 0.06
    assert {phantom.label for phantom in phantoms(40, 1)} == set(CLASSES)
