import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.imaging.sequences import PLANES, SEQUENCES, normal_of, plane_of, sequence_of_text, sequence_of_times

DESCRIPTIONS = {
    # from Siemens, GE and Philips consoles
    "t1_tse_tra": "T1",
    "t1_mprage_sag_p2_iso": "T1",
    "t1_mprage_sag_p2_iso_Gd": "T1c",
    "MPRAGE post": "T1c",
    "MP2RAGE_INV2": "T1",
    "AX T1 SE": "T1",
    "AX T1 FSE POST": "T1c",
    "Sag BRAVO": "T1",
    "3D SPGR with contrast": "T1c",
    "sT1W_3D_TFE": "T1",
    "T1W_SE": "T1",
    "3DT1": "T1",
    "T1 cor": "T1",
    "T1 C+": "T1c",
    "T1+C": "T1c",
    "t1c": "T1c",
    "t1ce": "T1c",
    "T1Gd": "T1c",
    "T1 tra Gadovist": "T1c",
    "T1 TSE KM": "T1c",
    "T1w TSE post contrast": "T1c",
    "T1 pre and post contrast": "T1c",
    "T1 post no fs": "T1c",
    # without contrast, although the word occurs
    "T1 SE pre contrast": "T1",
    "T1 precontrast": "T1",
    "T1 w/o contrast": "T1",
    "T1 without Gd": "T1",
    "T1 non-contrast": "T1",
    "T1 ohne KM": "T1",
    "T1 unenhanced": "T1",
    "t2_tse_tra_512": "T2",
    "AX T2 FRFSE": "T2",
    "T2W_TSE": "T2",
    "PD/T2": "T2",
    "T2 post contrast": "T2",
    "t2_tirm_tra_dark-fluid": "FLAIR",
    "AX T2 FLAIR": "FLAIR",
    "FLAIR 3D": "FLAIR",
    # BIDS file names
    "sub-01_T1w.nii.gz": "T1",
    "sub-01_ce-gadolinium_T1w.nii.gz": "T1c",
    "sub-01_T2w.nii.gz": "T2",
    "sub-01_FLAIR.nii.gz": "FLAIR",
    # none of the four
    "": None,
    "localizer": None,
    "AX T2* GRE": None,
    "t2_star": None,
    "T2-STAR": None,
    "DWI b1000": None,
    "SWI": None,
    "spine T12": None,
    "T10": None,
    "slot1": None,
    "patient22": None,
}


@pytest.mark.parametrize(("text", "sequence"), DESCRIPTIONS.items())
def test_descriptions(text, sequence):
    assert sequence_of_text(text) == sequence
    assert sequence_of_text(text.upper()) == sequence_of_text(text.lower()) == sequence


@pytest.mark.parametrize(
    ("text", "sequence"),
    [
        ("AX T1 FLAIR", "T1"),  # GE's inversion recovery with T1 contrast
        ("t1_tirm_tra_dark-fluid", "T1"),
        ("AX T1 +C", "T1c"),
        ("+C AX T1 FSE", "T1c"),
        ("MPRAGE +C", "T1c"),
        ("T1 POSTGAD", "T1c"),
        ("sT2W_TSE", "T2"),
        ("3DT2", "T2"),
        ("MP-RAGE", "T1"),
    ],
)
def test_descriptions_that_are_easily_misread(text, sequence):
    assert sequence_of_text(text) == sequence


@given(st.text(max_size=30))
def test_any_text_gives_a_known_sequence_or_none(text):
    assert sequence_of_text(text) in (*SEQUENCES, None)


@pytest.mark.parametrize(
    ("times", "sequence"),
    [
        ((500, 10, None), "T1"),
        ((1200, 30, None), "T1"),
        ((1900, 3, 900), None),
        ((4000, 100, None), "T2"),
        ((2000, 70, None), "T2"),
        ((9000, 120, 2500), "FLAIR"),
        ((9000, 120, 200), "T2"),
        ((3000, 15, None), None),
        ((None, 10, None), None),
        ((500, None, None), None),
    ],
)
def test_times_of_spin_echoes(times, sequence):
    assert sequence_of_times(*times) == sequence


@given(st.sampled_from(range(3)), st.floats(-40, 40), st.floats(-180, 180), st.booleans())
def test_a_tilted_slice_has_the_nearest_plane(axis, tilt, turn, flipped):
    normal = np.roll([1.0, 0, 0], axis)
    first, second = np.roll([0.0, 1, 0], axis), np.roll([0.0, 0, 1], axis)
    tilt, turn = np.radians([tilt, turn])
    row = np.cos(tilt) * first + np.sin(tilt) * normal
    row, column = np.cos(turn) * row + np.sin(turn) * second, np.cos(turn) * second - np.sin(turn) * row
    orientation = [*(-row if flipped else row), *column]
    assert plane_of(orientation) == PLANES[axis]
    found = normal_of(orientation)
    assert np.allclose([np.linalg.norm(found), found @ row, found @ column], [1, 0, 0])


@pytest.mark.parametrize(
    "orientation", [[], [1, 0, 0], [0] * 6, [1, 0, 0, 1, 0, 0], [1, 0, 0, 0, np.nan, 0], [1, 0, 0, 0, np.inf, 0]]
)
def test_an_invalid_orientation_has_no_plane(orientation):
    assert normal_of(orientation) is None
    assert plane_of(orientation) is None
