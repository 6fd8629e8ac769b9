"""MATLAB files of the CE-MRI data set: a struct ``cjdata`` with image, label and patient; and its folds."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mrcg.config.settings import ReadSettings
from mrcg.errors import ImageError, MissingExtraError, require
from mrcg.imaging.slices import Facts, Reading, Slice, check_size, finish, stretch

#: What the data set's label numbers mean.
LABELS = {1: "meningioma", 2: "glioma", 3: "pituitary"}
_HDF5 = b"\x89HDF\r\n\x1a\n"
_OLD = b"MATLAB 5.0 MAT-file"
_FIELDS = ("image", "label", "PID")


def is_matlab(data: bytes) -> bool:
    """Whether this is a MATLAB file, version 7.3 (HDF5 behind 512 bytes of text) or older."""
    return data.startswith((_HDF5, _OLD)) or data[512:520] == _HDF5


def read_matlab(data: bytes, settings: ReadSettings) -> Reading:
    """The slice of a CE-MRI file with its class and patient; the tumour's border and mask are not read.

    Raises:
        ImageError: not_cjdata, unknown_label, wrong_dimensions, unreadable or a reason of every reader.
        MissingExtraError: h5py or SciPy is not installed.
    """
    image, label, patient = _fields(data)
    if image.ndim != 2:
        raise ImageError("wrong_dimensions", f"cjdata.image has {image.ndim} dimensions, not 2")
    if not np.issubdtype(image.dtype, np.number) or np.iscomplexobj(image):
        raise ImageError("not_cjdata", "cjdata.image holds what is no grey level")
    check_size(image.shape[0], image.shape[1], settings)
    if label not in LABELS:
        raise ImageError("unknown_label", f"cjdata.label is not one of {', '.join(map(str, LABELS))}")
    grey = finish(stretch(image.astype(np.float32)), settings)
    return Reading([Slice(grey, 0, Facts(label=LABELS[label], patient=patient))])


def read_folds(data: bytes) -> list[int]:
    """Fold of each file ``1.mat``, ``2.mat``, … as ``cvind.mat`` states them.

    Raises:
        ImageError: not_cvind.
    """
    found = _either(data, lambda file: np.asarray(file["cvind"]), lambda struct: np.asarray(struct["cvind"]))
    if found is None or not np.issubdtype(found.dtype, np.number) or np.iscomplexobj(found):
        raise ImageError("not_cvind", "no vector of numbers named cvind")
    folds = found.reshape(-1).astype(np.float64)
    if not (np.isfinite(folds).all() and (folds == np.rint(folds)).all() and (np.abs(folds) < 2**31).all()):
        raise ImageError("not_cvind", "cvind holds what is no whole number")
    return [int(fold) for fold in folds]


def _fields(data: bytes) -> tuple[npt.NDArray[Any], int, str | None]:
    found = _either(data, _from_hdf5, _from_struct)
    if found is None:
        raise ImageError("not_cjdata", "a MATLAB file without a struct cjdata with image, label and PID")
    image, label, patient = found
    numbers = np.asarray(label).reshape(-1)
    known = numbers.size == 1 and np.issubdtype(numbers.dtype, np.number) and numbers[0] in LABELS
    return image, int(numbers[0]) if known else 0, _text(patient)


def _from_hdf5(file: Any) -> tuple[Any, Any, Any]:
    image, label, patient = (file["cjdata"][name] for name in _FIELDS)
    if image.size > 10**8 or image.nbytes > 2**30:
        raise ImageError("too_many_pixels", f"cjdata.image has {image.size:,} values")
    # MATLAB writes columns first: what HDF5 shows is the transpose.
    codes = np.asarray(patient)
    kind = patient.attrs.get("MATLAB_class", b"char" if codes.dtype == np.uint16 else b"")
    text = np.array("".join(map(chr, codes.reshape(-1).tolist()))) if kind in (b"char", "char") else codes
    return np.asarray(image).T, np.asarray(label), text


def _from_struct(struct: Any) -> tuple[Any, Any, Any]:
    image, label, patient = (struct["cjdata"][name][0, 0] for name in _FIELDS)
    return np.asarray(image), np.asarray(label), np.asarray(patient)


def _either(data: bytes, from_hdf5: Callable[[Any], Any], from_struct: Callable[[Any], Any]) -> Any:
    """What is read from a file of either version; None where it is not there."""
    try:
        if data.startswith(_OLD):
            return from_struct(require("scipy.io").loadmat(io.BytesIO(data)))
        with require("h5py").File(io.BytesIO(data), "r") as file:
            return from_hdf5(file)
    except (ImageError, MemoryError, MissingExtraError):
        raise
    except (KeyError, IndexError, ValueError, TypeError):
        # What NumPy and h5py raise where a name is asked of something that has none.
        return None
    except Exception as error:
        raise ImageError("unreadable", f"the MATLAB file is damaged ({type(error).__name__})") from error


def _text(patient: npt.NDArray[Any]) -> str | None:
    """A patient id, text or a number."""
    flat = patient.reshape(-1)
    if np.issubdtype(flat.dtype, np.number):
        return f"{flat[0]:.0f}" if flat.size == 1 and np.isrealobj(flat) and np.isfinite(flat[0]) else None
    return "".join(str(part) for part in flat.tolist()).strip(" \0") or None
