"""DICOM files: single-frame and multi-frame (classic and enhanced MR), in any transfer syntax that a plugin decodes.

Only the header fields named in this module are read, an allow-list (`docs/corpus.md#de-identification`). Error messages
never quote header values, because the quarantine stores them.
"""

from __future__ import annotations

import datetime
import io
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mrcg.config.settings import ReadSettings
from mrcg.errors import ImageError, MissingExtraError, require
from mrcg.imaging.sequences import normal_of, plane_of, sequence_of_text, sequence_of_times
from mrcg.imaging.slices import (
    Grey,
    Levels,
    Reading,
    Refusal,
    ScanFacts,
    Slice,
    check_size,
    check_spacing,
    finish,
    stretch,
    to_grey,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_DIRECTORY = "1.2.840.10008.1.3.10"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_MR = ("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4")
_GREY = ("MONOCHROME1", "MONOCHROME2")
#: Repetition, echo and inversion time: the functional group of enhanced MR, its keyword and that of classic MR.
_TIMES = (
    ("MRTimingAndRelatedParametersSequence", ("RepetitionTime",)),
    ("MREchoSequence", ("EffectiveEchoTime", "EchoTime")),
    ("MRModifierSequence", ("InversionTimes", "InversionTime")),
)
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def is_dicom(data: bytes) -> bool:
    """Return whether this is a DICOM file, with a preamble or without one (as old archives write)."""
    if data[128:132] == b"DICM":
        return True
    group, element = int.from_bytes(data[:2], "little"), int.from_bytes(data[2:4], "little")
    big_group = int.from_bytes(data[:2], "big")
    return len(data) > 132 and (group in (2, 8) or big_group == 8) and element < 0x2000


def read_dicom(data: bytes, settings: ReadSettings) -> Reading:
    """Return the slices of a DICOM file, sorted by position.

    Stored values go through the modality LUT or rescale, then through the header's VOI LUT or first window if
    ``settings.window`` is "header". Without a usable one they are stretched between percentiles of all pixels that are
    not padding. MONOCHROME1 is inverted.

    Raises:
        ImageError: dicomdir, no_pixels, colour, not_mr, burned_in, secondary_capture, transfer_syntax,
            wrong_dimensions, too_many_frames, truncated, undecodable, unreadable, too_many_pixels, too_small,
            absurd_spacing, not_finite or blank. Single slices of a multi-frame file do not raise: they are listed in
            ``Reading.refused``.
        MissingExtraError: pydicom is not installed.
    """
    dataset = _parse(data)
    try:
        _check(dataset, settings)
        count = _frame_count(dataset)
    except (ImageError, MemoryError, MissingExtraError):
        raise
    except Exception as error:
        # pydicom parses values lazily, and a damaged value can raise any error.
        raise ImageError("unreadable", f"the DICOM header is damaged ({type(error).__name__})") from error
    slices, refused = [], []
    try:
        for frame, stored in enumerate(stored_frames(dataset)):
            view = _Frame(dataset, frame)
            try:
                facts = _facts(view)
                slices.append(Slice(finish(_normalised(stored, view, settings), settings), frame, facts))
            except ImageError as error:
                if count == 1:
                    raise
                refused.append(Refusal(frame, error.reason, str(error)))
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        # Decoder plugins can raise any error, and their messages quote header values.
        raise ImageError("undecodable", f"no decoder can read the pixels ({type(error).__name__})") from error
    if (decoded := len(slices) + len(refused)) != count:
        raise ImageError("wrong_dimensions", f"the header states {count} frames, the file has {decoded}")
    slices.sort(key=lambda s: (s.facts.position is None, s.facts.position or 0.0, s.frame))
    return Reading(slices, refused)


def stored_frames(dataset: Dataset) -> Iterator[npt.NDArray[Any]]:
    """Yield the stored values of each frame, (rows, columns), as pydicom decodes them, without any normalisation."""
    pixels = require("pydicom.pixels")
    if _frame_count(dataset) == 1:
        # Not the iterator: pydicom 3.0's iterator writes to a read-only array when it corrects a JPEG 2000 sign.
        yield pixels.pixel_array(dataset, raw=True)
    else:
        yield from pixels.iter_pixels(dataset, raw=True)


def _parse(data: bytes) -> Dataset:
    pydicom = require("pydicom")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        dataset: Dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
        if syntax is None:
            # Without a meta header the transfer syntax is the encoding that pydicom detected (PS3.5 §10.1).
            implicit, little = dataset.original_encoding
            uid = pydicom.uid
            explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
            dataset.file_meta = pydicom.dataset.FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError("unreadable", f"the DICOM header is damaged ({type(error).__name__})") from error
    return dataset


def _check(dataset: Dataset, settings: ReadSettings) -> None:
    """Refuse, before pixels are decoded, a file whose header shows that it cannot or must not be read."""
    sop = str(_value(dataset, "SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "")
    if sop == _DIRECTORY or "DirectoryRecordSequence" in dataset:
        raise ImageError("dicomdir", "the file is a DICOM directory; give the files that it lists instead")
    if not any(name in dataset for name in _PIXELS):
        raise ImageError("no_pixels", "the DICOM object has no pixels, or the file is cut off")
    if str(_value(dataset, "BurnedInAnnotation") or "").upper() == "YES" and not settings.allow_burned_in:
        raise ImageError("burned_in", "text is burned into the pixels; set ingest.allow_burned_in to read it")
    secondary = sop == _SECONDARY_CAPTURE or sop.startswith(f"{_SECONDARY_CAPTURE}.") or "ConversionType" in dataset
    if secondary and not settings.allow_secondary_capture:
        raise ImageError(
            "secondary_capture", "a screenshot or film scan; set ingest.allow_secondary_capture to read it"
        )
    if (photometric := _value(dataset, "PhotometricInterpretation")) is None:
        raise ImageError("unreadable", "the header has no photometric interpretation")
    if int(_number(dataset, "SamplesPerPixel") or 1) != 1 or photometric not in _GREY:
        raise ImageError("colour", "the pixels are not grey levels")
    count = _frame_count(dataset)
    if count > 1 and str(_value(dataset, "Modality")) != "MR" and sop not in _MR:
        raise ImageError("not_mr", "a multi-frame file of another modality than MR")
    if count > settings.max_frames:
        raise ImageError("too_many_frames", f"the file has {count:,} frames, the limit is {settings.max_frames:,}")
    rows, columns = int(_number(dataset, "Rows") or 0), int(_number(dataset, "Columns") or 0)
    check_size(rows, columns, settings)
    syntax = dataset.file_meta.TransferSyntaxUID
    if getattr(syntax, "is_transfer_syntax", False) and syntax.is_compressed:
        try:
            available = require("pydicom.pixels").get_decoder(syntax).is_available
        except NotImplementedError:
            available = False
        if not available:
            raise ImageError("transfer_syntax", f"no decoder is available for the transfer syntax {syntax.name}")
    elif (stored := sum(len(dataset[name].value or b"") for name in _PIXELS if name in dataset)) * 8 < (
        rows * columns * count * int(_number(dataset, "BitsAllocated") or 1)
    ):
        raise ImageError("truncated", f"the file has {stored:,} bytes of pixels, fewer than its dimensions need")


class _Frame:
    """The header as it applies to one frame: the functional groups take precedence over the top level."""

    def __init__(self, dataset: Dataset, frame: int) -> None:
        self.dataset = dataset
        self._groups = []
        per_frame = _sequence(dataset, "PerFrameFunctionalGroupsSequence")
        if frame < len(per_frame):
            self._groups.append(per_frame[frame])
        self._groups += _sequence(dataset, "SharedFunctionalGroupsSequence")[:1]

    def holder(self, group: str, keyword: str) -> Dataset:
        """Return the dataset that contains a keyword: the item of a functional group if it does, else the top level."""
        for groups in self._groups:
            for item in _sequence(groups, group)[:1]:
                if keyword in item:
                    return item
        return self.dataset

    def numbers(self, group: str, keyword: str) -> list[float]:
        """Return the numbers of a keyword; empty if it is absent or not numeric."""
        return _numbers(self.holder(group, keyword), keyword)


def _normalised(stored: npt.NDArray[Any], view: _Frame, settings: ReadSettings) -> Grey:
    """Turn the stored values of a frame into grey levels."""
    dataset = view.dataset
    pixels = require("pydicom.pixels")
    if stored.ndim != 2:
        raise ImageError("wrong_dimensions", f"a frame has {stored.ndim} dimensions, not 2")
    mask = _non_padding(stored, dataset)
    rescaled = pixels.apply_modality_lut(stored, view.holder("PixelValueTransformationSequence", "RescaleSlope"))
    levels: Levels = rescaled.astype(np.float32)
    if not np.isfinite(levels).all():
        raise ImageError("not_finite", "some pixels are NaN or infinite")
    grey = _apply_window(rescaled, view) if settings.window == "header" else None
    if grey is None or grey.min() == grey.max():
        grey = stretch(levels, mask)
    if _value(dataset, "PhotometricInterpretation") == "MONOCHROME1":
        grey = 255 - grey
    if mask is not None:
        grey[~mask] = 0
    return grey


def _apply_window(levels: npt.NDArray[Any], view: _Frame) -> Grey | None:
    """Return grey levels by the header's VOI LUT or first window; None if the header has neither in usable form."""
    from pydicom.dataset import Dataset

    pixels = require("pydicom.pixels")
    for lut in _sequence(view.dataset, "VOILUTSequence")[:1]:
        if (grey := _apply_voi_lut(levels, lut)) is not None:
            return grey
    holder = view.holder("FrameVOILUTSequence", "WindowWidth")
    centre, width = _numbers(holder, "WindowCenter"), _numbers(holder, "WindowWidth")
    if not centre or not width or width[0] <= 1:
        return None
    # A separate header that states eight bits makes the output of the window 0..255.
    window = Dataset()
    window.PhotometricInterpretation = "MONOCHROME2"
    window.PixelRepresentation, window.BitsStored = 0, 8
    window.WindowCenter, window.WindowWidth = centre[0], width[0]
    function = str(_value(holder, "VOILUTFunction") or "LINEAR").upper()
    window.VOILUTFunction = function if function in ("LINEAR", "LINEAR_EXACT", "SIGMOID") else "LINEAR"
    return to_grey(pixels.apply_windowing(levels, window))


def _apply_voi_lut(levels: npt.NDArray[Any], lut: Dataset) -> Grey | None:
    """Return grey levels by a VOI LUT (PS3.3 C.11.2.1.1); None if the table is invalid.

    pydicom's own function is not used: version 3.0 rejects rescaled values, and wraps the indices of 8-bit tables.
    """
    descriptor, data = _numbers(lut, "LUTDescriptor"), _value(lut, "LUTData")
    if len(descriptor) != 3 or data is None or not 1 <= descriptor[2] <= 16:
        return None
    count, first, bits = int(descriptor[0]) or 65_536, descriptor[1], int(descriptor[2])
    if isinstance(data, bytes):
        table = np.frombuffer(data, dtype=np.uint8 if len(data) < 2 * count else "<u2")
    else:
        table = np.atleast_1d(np.asarray(data))
    if len(table) < count:
        return None
    indices = np.clip(np.rint(levels.astype(np.float64) - first), 0, count - 1).astype(np.intp)
    return to_grey(table[indices].astype(np.float32) * (255.0 / (2**bits - 1)))


def _non_padding(stored: npt.NDArray[Any], dataset: Dataset) -> npt.NDArray[np.bool_] | None:
    """Return True where a pixel is not padding (PS3.3 C.7.5.1.1.2); None if no pixel or every pixel is padding."""
    value = _number(dataset, "PixelPaddingValue")
    if value is None:
        return None
    limit = _number(dataset, "PixelPaddingRangeLimit")
    low, high = sorted((value, value if limit is None else limit))
    mask: npt.NDArray[np.bool_] = (stored < low) | (stored > high)
    return None if mask.all() or not mask.any() else mask


def _facts(view: _Frame) -> ScanFacts:
    dataset = view.dataset
    orientation = view.numbers("PlaneOrientationSequence", "ImageOrientationPatient")
    origin = view.numbers("PlanePositionSequence", "ImagePositionPatient")
    normal = normal_of(orientation)
    spacing = view.numbers("PixelMeasuresSequence", "PixelSpacing")
    check_spacing(spacing)
    return ScanFacts(
        patient=_text(dataset, "PatientID"),
        study=_text(dataset, "StudyInstanceUID"),
        series=_text(dataset, "SeriesInstanceUID"),
        instance=_text(dataset, "SOPInstanceUID"),
        accession=_text(dataset, "AccessionNumber"),
        plane=plane_of(orientation),
        sequence=_sequence_name(view),
        acquired=_acquisition_day(dataset),
        position=float(normal @ np.array(origin)) if normal is not None and len(origin) == 3 else None,
        spacing=spacing[0] if spacing else None,
    )


def _sequence_name(view: _Frame) -> str | None:
    dataset = view.dataset
    words = " ".join(filter(None, (_text(dataset, "SeriesDescription"), _text(dataset, "ProtocolName"))))
    times = [
        next((number for keyword in keywords for number in view.numbers(group, keyword)), None)
        for group, keywords in _TIMES
    ]
    name = sequence_of_text(words) or sequence_of_times(*times)
    contrast = _text(dataset, "ContrastBolusAgent") or _sequence(dataset, "ContrastBolusAgentSequence")
    return "T1c" if name == "T1" and contrast else name


def _acquisition_day(dataset: Dataset) -> datetime.date | None:
    for keyword in ("AcquisitionDate", "AcquisitionDateTime", "SeriesDate", "StudyDate", "ContentDate"):
        text = (_text(dataset, keyword) or "").replace(".", "")[:8]
        try:
            return datetime.datetime.strptime(text, "%Y%m%d").date()
        except ValueError:
            continue
    return None


def _frame_count(dataset: Dataset) -> int:
    return max(1, int(_number(dataset, "NumberOfFrames") or 1))


def _sequence(dataset: Dataset, keyword: str) -> list[Dataset]:
    value = _value(dataset, keyword)
    return list(value) if value is not None and not isinstance(value, (str, bytes)) else []


def _value(dataset: Dataset, keyword: str) -> Any:
    """Return a header value; None if it is absent, empty or cannot be parsed."""
    try:
        value = dataset.get(keyword)
    except MemoryError:
        raise
    except Exception:  # pydicom parses lazily, and a damaged value can raise any error
        return None
    return None if value is None or value == "" else value


def _text(dataset: Dataset, keyword: str) -> str | None:
    value = _value(dataset, keyword)
    return None if value is None else (str(value).strip(" \0") or None)


def _numbers(dataset: Dataset, keyword: str) -> list[float]:
    value = _value(dataset, keyword)
    if value is None:
        return []
    items: Sequence[Any] = [value] if isinstance(value, (str, int, float)) else list(value)
    try:
        numbers = [float(item) for item in items]
    except (TypeError, ValueError):
        return []
    return numbers if all(math.isfinite(number) for number in numbers) else []


def _number(dataset: Dataset, keyword: str) -> float | None:
    return next(iter(_numbers(dataset, keyword)), None)
