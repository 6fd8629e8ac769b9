"""DICOM files: single and multi-frame (classic and enhanced MR), any transfer syntax that a plugin decodes.

Only the header fields named here are looked at: the allow-list of DESIGN §5. Messages never quote a
header, because a quarantine keeps them.
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
    Facts,
    Grey,
    Levels,
    Reading,
    Refusal,
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
#: Repetition, echo and inversion time: functional group of enhanced MR, its keyword and the classic one.
_TIMES = (
    ("MRTimingAndRelatedParametersSequence", ("RepetitionTime",)),
    ("MREchoSequence", ("EffectiveEchoTime", "EchoTime")),
    ("MRModifierSequence", ("InversionTimes", "InversionTime")),
)
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def is_dicom(data: bytes) -> bool:
    """Whether this is a DICOM file, with its preamble or (as old archives write) without one."""
    if data[128:132] == b"DICM":
        return True
    group, element = int.from_bytes(data[:2], "little"), int.from_bytes(data[2:4], "little")
    big_group = int.from_bytes(data[:2], "big")
    return len(data) > 132 and (group in (2, 8) or big_group == 8) and element < 0x2000


def read_dicom(data: bytes, settings: ReadSettings) -> Reading:
    """The slices of a DICOM file, sorted by position.

    Modality LUT or rescale, then the VOI LUT or first window of the header (``settings.window``), else
    percentiles of what is not padding; MONOCHROME1 is inverted.

    Raises:
        ImageError: dicomdir, no_pixels, colour, not_mr, burned_in, secondary_capture, transfer_syntax,
            wrong_dimensions, too_many_frames, truncated, undecodable, or a reason of every reader. Slices of
            a multi-frame file are refused one by one.
        MissingExtraError: pydicom is not installed.
    """
    dataset = _parse(data)
    try:
        _check(dataset, settings)
        count = _frames(dataset)
    except (ImageError, MemoryError, MissingExtraError):
        raise
    except Exception as error:
        # pydicom parses a value when it is asked for, and raises what the damage makes it raise.
        raise ImageError("unreadable", f"the DICOM header is damaged ({type(error).__name__})") from error
    slices, refused = [], []
    try:
        for frame, stored in enumerate(stored_frames(dataset)):
            view = _Frame(dataset, frame)
            try:
                facts = _facts(view)
                slices.append(Slice(finish(_grey(stored, view, settings), settings), frame, facts))
            except ImageError as error:
                if count == 1:
                    raise
                refused.append(Refusal(frame, error.reason, str(error)))
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        # Decoder plugins raise what they like, and quote what they were given.
        raise ImageError("undecodable", f"no decoder takes its pixels ({type(error).__name__})") from error
    if len(slices) + len(refused) != count:
        raise ImageError("wrong_dimensions", f"{count} frames stated, {len(slices) + len(refused)} found")
    slices.sort(key=lambda one: (one.facts.position is None, one.facts.position or 0.0, one.frame))
    return Reading(slices, refused)


def stored_frames(dataset: Dataset) -> Iterator[npt.NDArray[Any]]:
    """(rows, columns) stored values of each frame, before any normalisation: pydicom's own pixels."""
    pixels = require("pydicom.pixels")
    if _frames(dataset) == 1:
        # Not the iterator: pydicom 3.0's writes to a read-only array where a JPEG 2000 sign has to be mended.
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
            # Without a meta header the way it was read is the way it was written (PS3.5 §10.1).
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
    """Refuse by header what is no grey MR slice, shows a person's name, or is too large."""
    sop = str(_value(dataset, "SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "")
    if sop == _DIRECTORY or "DirectoryRecordSequence" in dataset:
        raise ImageError("dicomdir", "a directory of DICOM files; the files themselves are read")
    if not any(name in dataset for name in _PIXELS):
        raise ImageError("no_pixels", "a DICOM object without pixels, or cut off before they end")
    if str(_value(dataset, "BurnedInAnnotation") or "").upper() == "YES" and not settings.allow_burned_in:
        raise ImageError("burned_in", "text is burned into its pixels; ingest.allow_burned_in takes it")
    secondary = sop == _SECONDARY_CAPTURE or sop.startswith(f"{_SECONDARY_CAPTURE}.") or "ConversionType" in dataset
    if secondary and not settings.allow_secondary_capture:
        raise ImageError("secondary_capture", "a screen shot or scan of film; ingest.allow_secondary_capture takes it")
    if (photometric := _value(dataset, "PhotometricInterpretation")) is None:
        raise ImageError("unreadable", "the header does not say what its pixels mean")
    if int(_number(dataset, "SamplesPerPixel") or 1) != 1 or photometric not in _GREY:
        raise ImageError("colour", "its pixels are not grey levels")
    count = _frames(dataset)
    if count > 1 and str(_value(dataset, "Modality")) != "MR" and sop not in _MR:
        raise ImageError("not_mr", "several frames of another modality than MR")
    if count > settings.max_frames:
        raise ImageError("too_many_frames", f"{count:,} frames, the limit is {settings.max_frames:,}")
    rows, columns = int(_number(dataset, "Rows") or 0), int(_number(dataset, "Columns") or 0)
    check_size(rows, columns, settings)
    syntax = dataset.file_meta.TransferSyntaxUID
    if getattr(syntax, "is_transfer_syntax", False) and syntax.is_compressed:
        try:
            available = require("pydicom.pixels").get_decoder(syntax).is_available
        except NotImplementedError:
            available = False
        if not available:
            raise ImageError("transfer_syntax", f"no decoder for transfer syntax {syntax.name}")
    elif (stored := sum(len(dataset[name].value or b"") for name in _PIXELS if name in dataset)) * 8 < (
        rows * columns * count * int(_number(dataset, "BitsAllocated") or 1)
    ):
        raise ImageError("truncated", f"{stored:,} bytes of pixels are fewer than its dimensions need")


class _Frame:
    """One frame's view of a header: its functional groups where it has them, the top level otherwise."""

    def __init__(self, dataset: Dataset, frame: int) -> None:
        self.dataset = dataset
        self._groups = []
        own = _sequence(dataset, "PerFrameFunctionalGroupsSequence")
        if frame < len(own):
            self._groups.append(own[frame])
        self._groups += _sequence(dataset, "SharedFunctionalGroupsSequence")[:1]

    def holder(self, group: str, keyword: str) -> Dataset:
        """The dataset that states a keyword: an item of a functional group, or the top level."""
        for groups in self._groups:
            for item in _sequence(groups, group)[:1]:
                if keyword in item:
                    return item
        return self.dataset

    def numbers(self, group: str, keyword: str) -> list[float]:
        """The numbers of a keyword; empty where it is absent or none."""
        return _numbers(self.holder(group, keyword), keyword)


def _grey(stored: npt.NDArray[Any], view: _Frame, settings: ReadSettings) -> Grey:
    dataset = view.dataset
    pixels = require("pydicom.pixels")
    if stored.ndim != 2:
        raise ImageError("wrong_dimensions", f"a frame of {stored.ndim} dimensions")
    counted = _not_padding(stored, dataset)
    rescaled = pixels.apply_modality_lut(stored, view.holder("PixelValueTransformationSequence", "RescaleSlope"))
    levels: Levels = rescaled.astype(np.float32)
    if not np.isfinite(levels).all():
        raise ImageError("not_finite", "pixels are NaN or infinite")
    grey = _windowed(rescaled, view) if settings.window == "header" else None
    if grey is None or grey.min() == grey.max():
        grey = stretch(levels, counted)
    if _value(dataset, "PhotometricInterpretation") == "MONOCHROME1":
        grey = 255 - grey
    if counted is not None:
        grey[~counted] = 0
    return grey


def _windowed(levels: npt.NDArray[Any], view: _Frame) -> Grey | None:
    """Grey levels by the header's VOI LUT or window; None where it has none that works."""
    from pydicom.dataset import Dataset

    pixels = require("pydicom.pixels")
    for lut in _sequence(view.dataset, "VOILUTSequence")[:1]:
        if (grey := _looked_up(levels, lut)) is not None:
            return grey
    holder = view.holder("FrameVOILUTSequence", "WindowWidth")
    centre, width = _numbers(holder, "WindowCenter"), _numbers(holder, "WindowWidth")
    if not centre or not width or width[0] <= 1:
        return None
    # A header of its own with eight bits: the window's output is then 0..255.
    window = Dataset()
    window.PhotometricInterpretation = "MONOCHROME2"
    window.PixelRepresentation, window.BitsStored = 0, 8
    window.WindowCenter, window.WindowWidth = centre[0], width[0]
    function = str(_value(holder, "VOILUTFunction") or "LINEAR").upper()
    window.VOILUTFunction = function if function in ("LINEAR", "LINEAR_EXACT", "SIGMOID") else "LINEAR"
    return to_grey(pixels.apply_windowing(levels, window))


def _looked_up(levels: npt.NDArray[Any], lut: Dataset) -> Grey | None:
    """Grey levels by a VOI LUT (PS3.3 C.11.2.1.1); None where it is none.

    Not pydicom's: 3.0 takes no rescaled values, and wraps the indices of tables with eight bits.
    """
    described, data = _numbers(lut, "LUTDescriptor"), _value(lut, "LUTData")
    if len(described) != 3 or data is None or not 1 <= described[2] <= 16:
        return None
    count, first, bits = int(described[0]) or 65_536, described[1], int(described[2])
    if isinstance(data, bytes):
        table = np.frombuffer(data, dtype=np.uint8 if len(data) < 2 * count else "<u2")
    else:
        table = np.atleast_1d(np.asarray(data))
    if len(table) < count:
        return None
    places = np.clip(np.rint(levels.astype(np.float64) - first), 0, count - 1).astype(np.intp)
    return to_grey(table[places].astype(np.float32) * (255.0 / (2**bits - 1)))


def _not_padding(stored: npt.NDArray[Any], dataset: Dataset) -> npt.NDArray[np.bool_] | None:
    """Where a frame is not padding (PS3.3 C.7.5.1.1.2); None where no padding is stated."""
    value = _number(dataset, "PixelPaddingValue")
    if value is None:
        return None
    limit = _number(dataset, "PixelPaddingRangeLimit")
    low, high = sorted((value, value if limit is None else limit))
    counted: npt.NDArray[np.bool_] = (stored < low) | (stored > high)
    return None if counted.all() or not counted.any() else counted


def _facts(view: _Frame) -> Facts:
    dataset = view.dataset
    orientation = view.numbers("PlaneOrientationSequence", "ImageOrientationPatient")
    place = view.numbers("PlanePositionSequence", "ImagePositionPatient")
    normal = normal_of(orientation)
    spacing = view.numbers("PixelMeasuresSequence", "PixelSpacing")
    check_spacing(spacing)
    return Facts(
        patient=_text(dataset, "PatientID"),
        study=_text(dataset, "StudyInstanceUID"),
        series=_text(dataset, "SeriesInstanceUID"),
        instance=_text(dataset, "SOPInstanceUID"),
        accession=_text(dataset, "AccessionNumber"),
        plane=plane_of(orientation),
        sequence=_sequence_name(view),
        acquired=_day(dataset),
        position=float(normal @ np.array(place)) if normal is not None and len(place) == 3 else None,
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


def _day(dataset: Dataset) -> datetime.date | None:
    for keyword in ("AcquisitionDate", "AcquisitionDateTime", "SeriesDate", "StudyDate", "ContentDate"):
        text = (_text(dataset, keyword) or "").replace(".", "")[:8]
        try:
            return datetime.datetime.strptime(text, "%Y%m%d").date()
        except ValueError:
            continue
    return None


def _frames(dataset: Dataset) -> int:
    return max(1, int(_number(dataset, "NumberOfFrames") or 1))


def _sequence(dataset: Dataset, keyword: str) -> list[Dataset]:
    value = _value(dataset, keyword)
    return list(value) if value is not None and not isinstance(value, (str, bytes)) else []


def _value(dataset: Dataset, keyword: str) -> Any:
    """A header value; None where it is absent, empty or cannot be parsed."""
    try:
        value = dataset.get(keyword)
    except MemoryError:
        raise
    except Exception:  # pydicom parses when asked, and raises what the damage makes it raise
        return None
    return None if value is None or value == "" else value


def _text(dataset: Dataset, keyword: str) -> str | None:
    value = _value(dataset, keyword)
    return None if value is None else (str(value).strip(" \0") or None)


def _numbers(dataset: Dataset, keyword: str) -> list[float]:
    value = _value(dataset, keyword)
    if value is None:
        return []
    many: Sequence[Any] = [value] if isinstance(value, (str, int, float)) else list(value)
    try:
        numbers = [float(one) for one in many]
    except (TypeError, ValueError):
        return []
    return numbers if all(math.isfinite(one) for one in numbers) else []


def _number(dataset: Dataset, keyword: str) -> float | None:
    return next(iter(_numbers(dataset, keyword)), None)
