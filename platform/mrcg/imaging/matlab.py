"""MATLAB files of the CE-MRI data set: a struct ``cjdata`` with image, label, patient and mask, and the folds file."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mrcg.config.settings import ReadSettings
from mrcg.errors import ImageError, MissingExtraError, require
from mrcg.imaging.lesion import Lesion, measure_lesion
from mrcg.imaging.slices import Grey, Reading, ScanFacts, Slice, check_size, finish, stretch

#: Class of each label number of the data set.
LABELS = {1: "meningioma", 2: "glioma", 3: "pituitary"}
_HDF5 = b"\x89HDF\r\n\x1a\n"
_VERSION_5 = b"MATLAB 5.0 MAT-file"
_FIELDS = ("image", "label", "PID")
_MASK = "tumorMask"


def is_matlab(data: bytes) -> bool:
    """Return whether this is a MATLAB file: version 7.3 (HDF5, with or without a 512-byte header) or older."""
    return data.startswith((_HDF5, _VERSION_5)) or data[512:520] == _HDF5


def read_matlab(data: bytes, settings: ReadSettings) -> Reading:
    """Return the slice of a CE-MRI file with its class, its patient and what the mask says about the lesion.

    The tumour border is not read. A mask of another shape than the image, or an empty one, says nothing.

    Raises:
        ImageError: not_cjdata, unknown_label, wrong_dimensions, unreadable, too_many_pixels, too_small, not_finite or
            blank.
        MissingExtraError: h5py or SciPy is not installed.
    """
    image, label, patient, mask = _fields(data)
    if image.ndim != 2:
        raise ImageError("wrong_dimensions", f"cjdata.image has {image.ndim} dimensions, not 2")
    if not np.issubdtype(image.dtype, np.number) or np.iscomplexobj(image):
        raise ImageError("not_cjdata", "cjdata.image does not hold real numbers")
    check_size(image.shape[0], image.shape[1], settings)
    if label not in LABELS:
        raise ImageError("unknown_label", f"cjdata.label is not one of {', '.join(map(str, LABELS))}")
    grey = stretch(image.astype(np.float32))
    facts = ScanFacts(label=LABELS[label], patient=patient, lesion=_lesion(grey, mask))
    return Reading([Slice(finish(grey, settings), 0, facts)])


def read_folds(data: bytes) -> list[int]:
    """Return the fold of each file ``1.mat``, ``2.mat``, … from the bytes of ``cvind.mat``.

    Raises:
        ImageError: not_cvind or unreadable.
        MissingExtraError: h5py or SciPy is not installed.
    """
    values = _read_either(data, lambda file: np.asarray(file["cvind"]), lambda struct: np.asarray(struct["cvind"]))
    if values is None or not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values):
        raise ImageError("not_cvind", "the file has no vector of real numbers named cvind")
    folds = values.reshape(-1).astype(np.float64)
    if not (np.isfinite(folds).all() and (folds == np.rint(folds)).all() and (np.abs(folds) < 2**31).all()):
        raise ImageError("not_cvind", "cvind holds values that are not whole numbers below 2^31")
    return [int(fold) for fold in folds]


def _lesion(grey: Grey, mask: npt.NDArray[Any] | None) -> Lesion | None:
    if mask is None or mask.shape != grey.shape or mask.dtype.kind not in "biuf":
        return None
    return measure_lesion(grey, np.nan_to_num(mask) != 0)


def _fields(data: bytes) -> tuple[npt.NDArray[Any], int, str | None, npt.NDArray[Any] | None]:
    """Return image, label number (0 if it is not one of ``LABELS``), patient id, and the mask if there is one."""
    fields = _read_either(data, _from_hdf5, _from_struct)
    if fields is None:
        raise ImageError("not_cjdata", "the MATLAB file has no struct cjdata with image, label and PID")
    image, label, patient, mask = fields
    numbers = np.asarray(label).reshape(-1)
    known = numbers.size == 1 and np.issubdtype(numbers.dtype, np.number) and numbers[0] in LABELS
    return image, int(numbers[0]) if known else 0, _text(patient), mask


def _from_hdf5(file: Any) -> tuple[Any, Any, Any, Any]:
    image, label, patient = (file["cjdata"][name] for name in _FIELDS)
    if image.size > 10**8 or image.nbytes > 2**30:
        raise ImageError("too_many_pixels", f"cjdata.image has {image.size:,} values")
    # MATLAB stores arrays in column-major order, so HDF5 shows the transpose.
    codes = np.asarray(patient)
    kind = patient.attrs.get("MATLAB_class", b"char" if codes.dtype == np.uint16 else b"")
    text = np.array("".join(map(chr, codes.reshape(-1).tolist()))) if kind in (b"char", "char") else codes
    mask = file["cjdata"].get(_MASK)
    # A sparse matrix is a group, which has no shape. A mask of another size than the image is not read.
    transposed = np.asarray(mask).T if getattr(mask, "shape", None) == image.shape else None
    return np.asarray(image).T, np.asarray(label), text, transposed


def _from_struct(struct: Any) -> tuple[Any, Any, Any, Any]:
    content = struct["cjdata"]
    image, label, patient = (content[name][0, 0] for name in _FIELDS)
    mask = np.asarray(content[_MASK][0, 0]) if _MASK in (content.dtype.names or ()) else None
    return np.asarray(image), np.asarray(label), np.asarray(patient), mask


def _read_either(data: bytes, from_hdf5: Callable[[Any], Any], from_struct: Callable[[Any], Any]) -> Any:
    """Return what the function for the file's version reads; None if the file lacks it."""
    try:
        if data.startswith(_VERSION_5):
            return from_struct(require("scipy.io").loadmat(io.BytesIO(data)))
        with require("h5py").File(io.BytesIO(data), "r") as file:
            return from_hdf5(file)
    except (ImageError, MemoryError, MissingExtraError):
        raise
    except (KeyError, IndexError, ValueError, TypeError):
        # NumPy and h5py raise these when an object has no item of that name.
        return None
    except Exception as error:
        raise ImageError("unreadable", f"the MATLAB file is damaged ({type(error).__name__})") from error


def _text(patient: npt.NDArray[Any]) -> str | None:
    """Return a patient id stored as text or as one number; None if it is neither."""
    flat = patient.reshape(-1)
    if np.issubdtype(flat.dtype, np.number):
        return f"{flat[0]:.0f}" if flat.size == 1 and np.isrealobj(flat) and np.isfinite(flat[0]) else None
    return "".join(str(char) for char in flat.tolist()).strip(" \0") or None
