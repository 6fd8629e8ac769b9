"""Sample sources: phantoms written as files of every supported format, free of patient data.

What is true of each phantom's lesion is written beside them: as a manifest, or as masks within ``.mat`` files.
"""

from __future__ import annotations

import csv
import datetime
import enum
import gzip
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mrcg.errors import UsageError, require
from mrcg.hashing import seed_of
from mrcg.imaging.lesion import Lesion, measure_lesion
from mrcg.imaging.matlab import LABELS
from mrcg.imaging.phantom import CLASSES, SLICE_PLANE, Phantom, phantoms

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

SPACING_MM, GAP_MM = 1.8, 5.0
SEQUENCES = ("T1w TSE", "T1w TSE post contrast", "T2w TSE", "T2w FLAIR")
FOLDS = 5

Patient = Sequence[Phantom]


class SampleFormat(enum.StrEnum):
    """Formats in which phantoms can be written."""

    png = "png"
    dicom = "dicom"
    nifti = "nifti"
    mat = "mat"


def write_samples(folder: Path, images: int, seed: int, kind: SampleFormat = SampleFormat.png) -> tuple[int, int]:
    """Write phantoms to a folder; the same arguments give the same files.

    ``png``: ``<class>/patient-<p>-slice-<s>.png``. ``dicom``: one series of MR images per patient, in
    ``<class>/<patient>/<series>/``. ``nifti``: one volume per patient, in ``<class>/``. ``mat``: ``1.mat``, … with
    ``cvind.mat``, laid out like CE-MRI, with its three classes.

    A file that already exists with the same bytes is not written again. So its modification time does not change, nor
    does the version of a corpus made from it.

    Returns:
        The number of files of the sample, and how many of them were written.

    Raises:
        UsageError: the folder cannot be written.
        MissingExtraError: the format's library is not installed.
    """
    files = written = 0
    for name, data in _WRITERS[kind](images, seed):
        files += 1
        written += _write(folder, name, data)
    return files, written


def write_manifest(folder: Path, name: str, images: int, seed: int, kind: SampleFormat) -> Path | None:
    """Write a manifest of what ``write_samples`` writes: path, label, plane, and what is true of the lesion.

    Returns:
        Its path, ``folder / name``; None for formats that have none: ``.mat`` files have masks, a volume is one file.

    Raises:
        UsageError: the folder cannot be written.
    """
    name_of = _NAMES.get(kind)
    if name_of is None:
        return None
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(["path", "label", "plane", *(f"lesion_{field.name}" for field in fields(Lesion))])
    for phantom in phantoms(images, seed):
        lesion = measure_lesion(phantom.pixels, phantom.lesion) or Lesion()
        facts = ["" if fact is None else f"{fact:.4f}" for fact in astuple(lesion)]
        writer.writerow([name_of(phantom), phantom.label, SLICE_PLANE, *facts])
    _write(folder, name, rows.getvalue().encode())
    return folder / name


def _write(folder: Path, name: str, data: bytes) -> bool:
    """Write a file unless it is there with the same bytes; return whether it was written."""
    path = folder / name
    try:
        if path.is_file() and path.read_bytes() == data:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}; choose another folder") from error
    return True


def _patients(images: int, seed: int, classes: Sequence[str] = CLASSES) -> Iterator[Patient]:
    for _, slices in itertools.groupby(phantoms(images, seed, classes), key=lambda p: (p.label, p.patient)):
        yield list(slices)


def _png(images: int, seed: int) -> Iterator[tuple[str, bytes]]:
    for phantom in phantoms(images, seed):
        buffer = io.BytesIO()
        Image.fromarray(phantom.pixels).save(buffer, "PNG")
        yield _png_name(phantom), buffer.getvalue()


def _png_name(phantom: Phantom) -> str:
    return f"{phantom.label}/patient-{phantom.patient:04d}-slice-{phantom.slice_number}.png"


def _dicom(images: int, seed: int) -> Iterator[tuple[str, bytes]]:
    rle = require("pydicom.uid").RLELossless
    for patient in _patients(images, seed):
        for phantom in patient:
            dataset = _mr_image(phantom, seed)
            if phantom.patient % 2:
                dataset.compress(rle, generate_instance_uid=False)
            buffer = io.BytesIO()
            dataset.save_as(buffer, enforce_file_format=True)
            yield _dicom_name(phantom), buffer.getvalue()


def _dicom_name(phantom: Phantom) -> str:
    return f"{phantom.label}/P{phantom.patient:04d}/S1/IM{phantom.slice_number:04d}"


def _mr_image(phantom: Phantom, seed: int) -> FileDataset:
    """Return one MR image with the headers that a scanner writes; names and dates are invented."""
    pydicom = require("pydicom")
    rng = np.random.default_rng(seed_of(seed, "header", phantom.label, phantom.patient))
    patient_key = f"{phantom.label}-{phantom.patient}-{seed}"

    def uid(*parts: object) -> str:
        return str(pydicom.uid.generate_uid(entropy_srcs=[patient_key, *map(str, parts)]))

    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    meta.MediaStorageSOPInstanceUID = uid("instance", phantom.slice_number)
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset: FileDataset = pydicom.dataset.FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    day = datetime.date(2018, 1, 1) + datetime.timedelta(days=int(rng.integers(0, 2500)))
    sequence = SEQUENCES[int(rng.integers(0, len(SEQUENCES)))]
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid("study"), uid("series")
    dataset.PatientName, dataset.PatientID = f"Phantom^{phantom.label}^{phantom.patient:04d}", f"PH-{patient_key}"
    dataset.PatientBirthDate, dataset.PatientSex = "19600101", "O"
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = day.strftime("%Y%m%d")
    dataset.AccessionNumber, dataset.InstitutionName = f"A{rng.integers(10**8)}", "Phantom Hospital"
    dataset.Modality, dataset.SeriesDescription, dataset.SeriesNumber = "MR", sequence, 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    dataset.InstanceNumber = phantom.slice_number + 1
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [-115.0, -115.0, phantom.slice_number * GAP_MM]
    dataset.PixelSpacing, dataset.SliceThickness = [SPACING_MM, SPACING_MM], GAP_MM
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = phantom.pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.WindowCenter, dataset.WindowWidth = 2040, 4080
    dataset.PixelData = (phantom.pixels.astype("<u2") * 16).tobytes()
    return dataset


def _nifti(images: int, seed: int) -> Iterator[tuple[str, bytes]]:
    nibabel = require("nibabel")
    for patient in _patients(images, seed):
        # The axes point right, to the front and up, so that the reader gets the slices as they were drawn.
        volume = np.stack([phantom.pixels.T[::-1, ::-1] for phantom in patient], axis=2).astype(np.int16)
        affine = np.diag([SPACING_MM, SPACING_MM, GAP_MM, 1.0])
        first = patient[0]
        data = nibabel.Nifti1Image(volume, affine).to_bytes()
        yield f"{first.label}/sub-{first.patient:04d}_T1w.nii.gz", gzip.compress(data, mtime=0)


def _mat(images: int, seed: int) -> Iterator[tuple[str, bytes]]:
    numbers = {f"{name}_tumor": number for number, name in LABELS.items()}
    folds: list[int] = []
    for index, patient in enumerate(_patients(images, seed, tuple(numbers))):
        for phantom in patient:
            folds.append(index % FOLDS + 1)
            yield f"{len(folds)}.mat", _cjdata(phantom, numbers[phantom.label], f"PH{index:05d}")
    yield "cvind.mat", _matlab73({"cvind": np.array([folds], dtype=np.float64)})


def _cjdata(phantom: Phantom, label: int, patient: str) -> bytes:
    return _matlab73(
        {
            # MATLAB stores arrays in column-major order.
            "cjdata/image": phantom.pixels.T.astype(np.int16) * 16,
            "cjdata/tumorMask": phantom.lesion.T.astype(np.uint8),
            "cjdata/label": np.array([[label]], dtype=np.float64),
            "cjdata/PID": np.array([[ord(letter)] for letter in patient], dtype=np.uint16),
        }
    )


def _matlab73(content: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]) -> bytes:
    """Return a MATLAB 7.3 file: HDF5 after a 512-byte header that starts with a line of text."""
    buffer = io.BytesIO()
    with require("h5py").File(buffer, "w", userblock_size=512) as file:
        for name, values in content.items():
            file.create_dataset(name, data=values, track_times=False)
    text = b"MATLAB 7.3 MAT-file, phantom".ljust(124) + b"\x00\x02IM"
    return text.ljust(512, b"\0") + buffer.getvalue()[512:]


_WRITERS: dict[SampleFormat, Callable[[int, int], Iterator[tuple[str, bytes]]]] = {
    SampleFormat.png: _png,
    SampleFormat.dicom: _dicom,
    SampleFormat.nifti: _nifti,
    SampleFormat.mat: _mat,
}
#: Name of a phantom's file, for formats with one file for each.
_NAMES: dict[SampleFormat, Callable[[Phantom], str]] = {
    SampleFormat.png: _png_name,
    SampleFormat.dicom: _dicom_name,
}
