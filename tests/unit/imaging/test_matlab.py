import io

import h5py
import numpy as np
import pytest
import scipy.io

from mrcg.config.settings import ReadSettings
from mrcg.errors import ImageError
from mrcg.imaging.lesion import measure_lesion
from mrcg.imaging.matlab import LABELS, is_matlab, read_folds, read_matlab
from mrcg.imaging.phantom import phantoms
from mrcg.imaging.samples import FOLDS, SampleFormat, write_samples

SETTINGS = ReadSettings(max_pixels=20_000)
LEVELS = np.random.default_rng(0).integers(0, 4096, (20, 30), dtype=np.int16)
NUMBERS = {f"{name}_tumor": number for number, name in LABELS.items()}


def older(**content) -> bytes:
    out = io.BytesIO()
    scipy.io.savemat(out, content)
    return out.getvalue()


def newer(**content) -> bytes:
    """Return a version 7.3 file: column-major arrays, text as character codes, a 512-byte header."""
    out = io.BytesIO()
    with h5py.File(out, "w", userblock_size=512) as file:
        for name, value in content.items():
            fields = value if isinstance(value, dict) else {"": value}
            for field, inner in fields.items():
                inner = [[ord(letter)] for letter in inner] if isinstance(inner, str) else inner
                kind = np.uint16 if isinstance(inner, list) else None
                file[f"{name}/{field}" if field else name] = np.asarray(inner, kind).T
    return b"MATLAB 7.3 MAT-file".ljust(512) + out.getvalue()[512:]


def cjdata(**fields):
    return {"image": LEVELS, "label": 2.0, "PID": "100360"} | fields


BOTH = pytest.mark.parametrize("write", [older, newer])


def reason(data, settings=SETTINGS):
    with pytest.raises(ImageError) as caught:
        read_matlab(data, settings)
    assert "100360" not in str(caught.value)
    return caught.value.reason


def test_both_versions_of_a_file_give_the_same_slice(tmp_path):
    files, _ = write_samples(tmp_path, 30, 5, SampleFormat.mat)
    made = sorted(phantoms(30, 5, tuple(NUMBERS)), key=lambda one: (list(NUMBERS).index(one.label), one.patient))
    assert files == len(made) + 1
    patients = {}
    for number, phantom in enumerate(made, 1):
        data = (tmp_path / f"{number}.mat").read_bytes()
        assert is_matlab(data)
        (one,) = read_matlab(data, SETTINGS).slices
        assert (f"{one.facts.label}_tumor", one.frame) == (phantom.label, 0)
        patients.setdefault((phantom.label, phantom.patient), set()).add(one.facts.patient)
        content = {"image": phantom.pixels.astype(np.int16) * 16, "label": NUMBERS[phantom.label]}
        content["tumorMask"] = phantom.lesion
        (same,) = read_matlab(older(cjdata=content | {"PID": one.facts.patient}), SETTINGS).slices
        assert (same.pixels == one.pixels).all()
        assert same.facts == one.facts
        assert same.facts.lesion == measure_lesion(one.pixels, phantom.lesion)
    assert all(len(names) == 1 for names in patients.values())
    assert len(set().union(*patients.values())) == len(patients)


@BOTH
def test_levels_are_stretched_and_the_image_is_not_transposed(write):
    (one,) = read_matlab(write(cjdata=cjdata(tumorMask=LEVELS > 9)), SETTINGS).slices
    low, high = np.percentile(LEVELS, (0.5, 99.5))
    assert np.abs(one.pixels - np.clip((LEVELS - low) / (high - low), 0, 1) * 255).max() <= 0.51
    assert (one.facts.label, one.facts.patient) == ("glioma", "100360")


@BOTH
def test_the_mask_gives_the_lesion_and_is_not_transposed(write):
    mask = np.zeros_like(LEVELS, dtype=np.uint8)
    mask[2:4, 20:26] = 1
    (one,) = read_matlab(write(cjdata=cjdata(tumorMask=mask)), SETTINGS).slices
    assert (one.facts.lesion.y, one.facts.lesion.x, one.facts.lesion.area) == (3 / 20, 23 / 30, 12 / 600)


def test_a_mask_that_is_no_array_says_nothing():
    file = io.BytesIO(newer(cjdata=cjdata()))
    with h5py.File(file, "a") as content:
        content["cjdata"].create_group("tumorMask")["data"] = np.ones(3)
    (one,) = read_matlab(file.getvalue(), SETTINGS).slices
    assert one.facts.lesion is None


@BOTH
def test_what_is_no_number_in_a_mask_is_outside(write):
    mask = np.full(LEVELS.shape, np.nan)
    mask[2:4, 20:26] = 1
    (one,) = read_matlab(write(cjdata=cjdata(tumorMask=mask)), SETTINGS).slices
    assert (one.facts.lesion.y, one.facts.lesion.x, one.facts.lesion.area) == (3 / 20, 23 / 30, 12 / 600)


@BOTH
@pytest.mark.parametrize("mask", [np.zeros_like(LEVELS), np.ones((30, 20)), np.ones(600), LEVELS * 1j, "mask"])
def test_a_mask_that_fits_no_lesion_says_nothing(write, mask):
    (one,) = read_matlab(write(cjdata=cjdata(tumorMask=mask)), SETTINGS).slices
    assert one.facts.lesion is None
    (without,) = read_matlab(write(cjdata=cjdata()), SETTINGS).slices
    assert (one.pixels == without.pixels).all()


@BOTH
@pytest.mark.parametrize(("label", "name"), LABELS.items())
def test_labels(write, label, name):
    assert read_matlab(write(cjdata=cjdata(label=float(label))), SETTINGS).slices[0].facts.label == name


@BOTH
@pytest.mark.parametrize(("stated", "patient"), [("MR 051\0", "MR 051"), (" a ", "a"), ("", None), ("\0", None)])
def test_patients(write, stated, patient):
    assert read_matlab(write(cjdata=cjdata(PID=stated)), SETTINGS).slices[0].facts.patient == patient


@BOTH
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"other": LEVELS}, "not_cjdata"),
        ({"cjdata": cjdata(label=0.0)}, "unknown_label"),
        ({"cjdata": cjdata(label=4.0)}, "unknown_label"),
        ({"cjdata": cjdata(label=np.nan)}, "unknown_label"),
        ({"cjdata": cjdata(label=np.array([[1.0, 2.0]]))}, "unknown_label"),
        ({"cjdata": cjdata(image=np.zeros((20, 20, 3)))}, "wrong_dimensions"),
        ({"cjdata": cjdata(image=LEVELS * 1j)}, "not_cjdata"),
        ({"cjdata": cjdata(image=np.where(LEVELS.max() == LEVELS, np.nan, LEVELS))}, "not_finite"),
        ({"cjdata": cjdata(image=np.full((20, 20), 7.0))}, "blank"),
        ({"cjdata": cjdata(image=np.zeros((5, 20)))}, "too_small"),
        ({"cjdata": cjdata(image=np.zeros((200, 200)))}, "too_many_pixels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unusable_files_are_refused_with_a_reason(write, content, expected):
    assert reason(write(**content)) == expected


@BOTH
@pytest.mark.parametrize("content", [{"label": 1.0}, {"image": LEVELS, "label": 2.0}])
def test_a_struct_without_the_fields(write, content):
    assert reason(write(cjdata=content)) == "not_cjdata"


@BOTH
def test_cjdata_that_is_not_a_struct_is_refused(write):
    assert reason(write(cjdata=LEVELS)) == "not_cjdata"


@BOTH
def test_a_fractional_label_is_unknown(write):
    assert reason(write(cjdata=cjdata(label=1.5))) == "unknown_label"


@pytest.mark.parametrize("number", [np.int32(100360), np.float64(100360), np.uint8(32)])
def test_a_patient_that_is_a_number(number):
    facts = read_matlab(older(cjdata=cjdata(PID=number)), SETTINGS).slices[0].facts
    assert facts.patient == str(int(number))


@BOTH
def test_damaged_files(write):
    data = write(cjdata=cjdata())
    for cut in (600, len(data) // 2, len(data) - 40):
        assert reason(data[:cut]) in ("unreadable", "not_cjdata")
    assert is_matlab(data)
    assert not is_matlab(b"MATLAB 5.0" + data[:400])
    assert not is_matlab(b"")


@BOTH
def test_folds(write):
    assert read_folds(write(cvind=np.array([[1.0, 5.0, 2.0]]))) == [1, 5, 2]
    assert read_folds(write(cvind=np.array([[3], [4]], dtype=np.uint8))) == [3, 4]
    for content in ({"other": np.ones(3)}, {"cvind": {"a": np.ones(3)}}):
        with pytest.raises(ImageError) as caught:
            read_folds(write(**content))
        assert caught.value.reason == "not_cvind"


def test_folds_of_samples(tmp_path):
    write_samples(tmp_path, 60, 1, SampleFormat.mat)
    folds = read_folds((tmp_path / "cvind.mat").read_bytes())
    assert len(folds) == 60
    assert set(folds) == set(range(1, FOLDS + 1))


@pytest.mark.parametrize("fold", [np.nan, np.inf])
def test_folds_that_are_not_whole_numbers_are_refused(fold):
    with pytest.raises(ImageError):
        read_folds(older(cvind=np.array([[1.0, fold]])))
