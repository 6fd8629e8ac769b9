"""The readers against the test files of pydicom and nibabel, which were not written for this project.

The expected outcome of every file comes only from pydicom, nibabel, NumPy, Pillow and h5py.
"""

import io
import math
import re
import subprocess
import sys
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image, UnidentifiedImageError
from tests.conftest import REPOSITORY

from mrcg.config.settings import ReadSettings
from mrcg.errors import ImageError
from mrcg.imaging.dicom import stored_frames
from mrcg.imaging.isolated_reader import IsolatedReader
from mrcg.imaging.sequences import PLANES

# Many of these files are odd on purpose, and the libraries warn about them.
pytestmark = pytest.mark.filterwarnings("ignore")

SETTINGS = ReadSettings(min_side=1, allow_secondary_capture=True, allow_burned_in=True)
INSIDE_PYDICOM, INSIDE_NIBABEL = Path(pydicom.__file__).parent, Path(nibabel.__file__).parent
FOLDERS = (INSIDE_PYDICOM / "data/test_files", INSIDE_NIBABEL / "tests/data", INSIDE_NIBABEL / "nicom/tests/data")
FILES = [
    path
    for folder in FOLDERS
    for path in sorted(folder.rglob("*"))
    if path.is_file() and not path.name.startswith(".") and "__pycache__" not in path.parts
]
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
DICOMDIR = "1.2.840.10008.1.3.10"
IMAGES = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")


@pytest.fixture(scope="module")
def isolated():
    with IsolatedReader(SETTINGS, 60, 2**30) as one:
        yield one


@pytest.fixture(scope="module")
def outcomes(isolated):
    """The outcome of every file: a reading or an error."""
    found, children = {}, set()
    for path in FILES:
        try:
            found[path] = isolated.read(path.read_bytes())
        except ImageError as error:
            found[path] = error
        children.add(isolated._child and isolated._child.pid)
    assert len(children) == 1, "one child read them all: none crashed it"
    return found


def dataset_of(path):
    """Return the dataset of a DICOM file, with or without a preamble; None if it is not DICOM."""
    dataset = pydicom.dcmread(path, force=True)
    return dataset if pydicom.misc.is_dicom(path) or "SOPClassUID" in dataset else None


def decoded(path):
    """Return pixels (frames, rows, columns[, samples]) as pydicom decodes them; None if it cannot."""
    dataset = pydicom.dcmread(path, force=True)
    try:
        pixels = dataset.pixel_array
        frames = int(dataset.get("NumberOfFrames") or 1)
    except Exception:
        return None
    return pixels if frames > 1 else pixels[np.newaxis]


def is_grey(dataset):
    return dataset.get("SamplesPerPixel") == 1 and dataset.get("PhotometricInterpretation") in (
        "MONOCHROME1",
        "MONOCHROME2",
    )


def volume_of(path):
    """Return the NIfTI image of a file; None if the file holds none."""
    if not path.name.endswith((".nii", ".nii.gz")):
        return None
    image = nibabel.load(path)
    return image if isinstance(image, (nibabel.Nifti1Image, nibabel.Nifti2Image, nibabel.Cifti2Image)) else None


def shape_of(path):
    image = volume_of(path)
    header = image.nifti_header if isinstance(image, nibabel.Cifti2Image) else image.header
    return header.get_data_shape()


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    DATASETS = {path: dataset for path in FILES if (dataset := dataset_of(path)) is not None}
    VOLUMES = [path for path in FILES if volume_of(path) is not None]


def name(path):
    return path.relative_to(next(folder for folder in FOLDERS if path.is_relative_to(folder))).as_posix()


def test_there_are_many_files_of_every_outcome(outcomes):
    kinds = Counter(type(outcome).__name__ for outcome in outcomes.values())
    assert len(FILES) > 200
    assert len(DATASETS) > 150
    assert len(VOLUMES) >= 7
    assert kinds["Reading"] > 50
    assert set(kinds) == {"Reading", "ImageError"}


@pytest.mark.parametrize("path", DATASETS, ids=name)
def test_dicom_is_read_where_pydicom_reads_a_grey_image(path, outcomes):
    dataset, pixels, outcome = DATASETS[path], decoded(path), outcomes[path]
    frames = 0 if pixels is None else len(pixels)
    wanted = frames and is_grey(dataset) and (frames == 1 or dataset.get("Modality") == "MR")
    if not wanted:
        assert isinstance(outcome, ImageError)
        return
    stored = list(stored_frames(pydicom.dcmread(io.BytesIO(path.read_bytes()), force=True)))
    assert len(stored) == frames
    assert all(np.array_equal(one, expected) for one, expected in zip(stored, pixels, strict=True))
    if isinstance(outcome, ImageError) and outcome.reason == "mosaic":
        return
    if isinstance(outcome, ImageError):
        assert outcome.reason == "blank"
        assert all(np.unique(frame).size == 1 for frame in pixels)
        return
    assert len(outcome.slices) + len(outcome.refused) == frames
    assert all(np.unique(pixels[refused.frame]).size == 1 for refused in outcome.refused)
    for one in outcome.slices:
        if max(pixels[one.frame].shape) <= SETTINGS.max_side:
            assert_follows(one.pixels, pixels[one.frame], dataset)


def assert_follows(grey, stored, dataset):
    """Grey levels must have the order of the stored values, or the reverse order for MONOCHROME1."""
    assert grey.shape == stored.shape
    counted = np.ones(stored.shape, bool) if "PixelPaddingValue" not in dataset else stored != dataset.PixelPaddingValue
    values, place = np.unique(stored[counted], return_inverse=True)
    low, high = np.full(values.size, 255), np.zeros(values.size, int)
    np.minimum.at(low, place, grey[counted])
    np.maximum.at(high, place, grey[counted])
    assert (low == high).all(), "equal values have equal levels"
    steps = np.diff(low)
    assert ((steps <= 0) if dataset.PhotometricInterpretation == "MONOCHROME1" else (steps >= 0)).all()
    assert steps.any()


@pytest.mark.parametrize("path", VOLUMES, ids=name)
def test_nifti_is_read_where_nibabel_reads_one_volume_of_numbers(path, outcomes):
    shape, outcome = shape_of(path), outcomes[path]
    if len(shape) > 3:
        assert max(shape[3:]) > 1
        assert outcome.reason == "four_dimensional"
        return
    image = nibabel.as_closest_canonical(nibabel.load(path))
    volume = image.get_fdata()
    finite = np.isfinite(volume)
    (plane,) = {one.facts.plane for one in outcome.slices}
    axis = PLANES.index(plane)
    volume = np.moveaxis(np.where(finite, volume, np.nan), axis, 2)
    numbers = [one.frame % 100_000 for one in (*outcome.slices, *outcome.refused)]
    assert len(set(numbers)) == min(volume.shape[2], SETTINGS.volume_slices)
    low, high = np.nanpercentile(volume, (0.5, 99.5))
    levels = np.nan_to_num(np.clip((volume - low) * 255 / (high - low), 0, 255))
    spread = np.round(levels).std(axis=(0, 1))
    left_out = np.delete(spread, numbers)
    assert left_out.size == 0 or left_out.max() <= spread[numbers].min() * (1 + 1e-6)
    for one in outcome.slices:
        number = one.frame % 100_000
        # Radiological orientation: front at the top, the patient's right on the left.
        seen = np.array(
            [[levels[x, y, number] for x in reversed(range(volume.shape[0]))] for y in reversed(range(volume.shape[1]))]
        )
        assert one.pixels.shape == seen.shape
        assert np.abs(one.pixels - seen).max() < 0.51
        assert one.facts.position == pytest.approx(number * image.header.get_zooms()[axis])
    for refused in outcome.refused:
        assert refused.reason == "blank"
        assert (
            np.bincount(np.round(levels[:, :, refused.frame % 100_000]).astype(int).ravel()).max()
            >= 0.999 * levels[:, :, 0].size
        )


def stored_bytes(dataset):
    return sum(len(dataset[keyword].value) for keyword in PIXELS if keyword in dataset)


def needed_bytes(dataset):
    frames = int(dataset.get("NumberOfFrames") or 1)
    return dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated // 8 * frames


def is_image(path):
    try:
        with Image.open(path, formats=IMAGES):
            return True
    except UnidentifiedImageError:
        return False


def is_other(path):
    """Return whether the libraries detect none of the formats."""
    magic = path.read_bytes()[:20]
    return not (
        path in DATASETS or path in VOLUMES or is_image(path) or h5py.is_hdf5(path) or magic.startswith(b"MATLAB 5.0")
    )


def has_cjdata(path):
    with h5py.File(path) as file:
        return "cjdata" in file


def is_described(dataset):
    return "PhotometricInterpretation" in dataset and str(dataset.get("NumberOfFrames", 1)).isdigit()


#: For each reason a check that it is true for a file.
TRUE = {
    "no_pixels": lambda path: not any(keyword in DATASETS[path] for keyword in PIXELS),
    "dicomdir": lambda path: DATASETS[path].file_meta.MediaStorageSOPClassUID == DICOMDIR,
    "colour": lambda path: not is_grey(DATASETS[path]),
    "not_mr": lambda path: int(DATASETS[path].NumberOfFrames) > 1 and DATASETS[path].Modality != "MR",
    "truncated": lambda path: decoded(path) is None and stored_bytes(DATASETS[path]) < needed_bytes(DATASETS[path]),
    "undecodable": lambda path: decoded(path) is None and any(keyword in DATASETS[path] for keyword in PIXELS),
    "transfer_syntax": lambda path: decoded(path) is None,
    "unreadable": lambda path: decoded(path) is None and not is_described(DATASETS[path]),
    # Some were cut to a smaller size for a library's own tests.
    "mosaic": lambda path: DATASETS[path].Rows % math.ceil(math.sqrt(DATASETS[path][0x0019, 0x100A].value)) > 0,
    "blank": lambda path: np.unique(decoded(path)).size == 1,
    "four_dimensional": lambda path: len(shape_of(path)) > 3,
    "not_finite": lambda path: not np.isfinite(nibabel.load(path).get_fdata()).all(),
    "detached_header": lambda path: type(nibabel.load(path)) in (nibabel.Nifti1Pair, nibabel.nifti2.Nifti2Pair),
    "not_cjdata": lambda path: h5py.is_hdf5(path) and not has_cjdata(path),
    "not_an_image": is_other,
}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_the_reason_of_every_refusal_is_true(path, outcomes):
    outcome = outcomes[path]
    if isinstance(outcome, ImageError):
        assert TRUE[outcome.reason](path), f"{outcome.reason}: {outcome}"
    else:
        assert path in DATASETS or path in VOLUMES


def test_the_formats_page_is_up_to_date():
    text = (REPOSITORY / "docs" / "formats.md").read_text(encoding="utf-8")
    for package in ("pydicom", "nibabel"):
        (stated,) = re.findall(rf"{package} (\d[\w.]*)", text)
        if stated != version(package):
            pytest.skip(f"docs/formats.md is of {package} {stated}, here is {version(package)}")
    done = subprocess.run(
        [sys.executable, "docs/formats.py", "--check"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
