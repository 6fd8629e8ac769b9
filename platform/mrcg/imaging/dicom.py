"""DICOM files: single-frame and multi-frame (classic and enhanced MR), in any transfer syntax that a plugin decodes.

Only the header fields named in this module are read, an allow-list (`docs/corpus.md#de-identification`). Error messages
never quote header values, because the quarantine stores them.
"""

from __future__ import annotations

import datetime
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mrcg.config.settings import ReadSettings
from mrcg.errors import ImageError, MissingExtraError, require
from mrcg.imaging.dicom_header import Frame, frame_count, items_of, number_of, stated_number, text_of, value_of
from mrcg.imaging.dicom_levels import grey_levels
from mrcg.imaging.mosaic import mosaic_of
from mrcg.imaging.sequences import normal_of, plane_of, sequence_of_text, sequence_of_times
from mrcg.imaging.slices import Grey, Reading, Refusal, ScanFacts, Slice, check_size, check_spacing, finish, first_day

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
#: Bits of a stored value that pixels can have.
_BITS = (1, 8, 16, 32, 64)


def is_dicom(data: bytes) -> bool:
    """Return whether this is a DICOM file, with a preamble or without one (as old archives write)."""
    if data[128:132] == b"DICM":
        return True
    group, element = int.from_bytes(data[:2], "little"), int.from_bytes(data[2:4], "little")
    big_group = int.from_bytes(data[:2], "big")
    return len(data) > 132 and (group in (2, 8) or big_group == 8) and element < 0x2000


def read_dicom(data: bytes, settings: ReadSettings) -> Reading:
    """Return the slices of a DICOM file, sorted by position; a mosaic of Siemens is cut into its slices.

    Stored values go through the modality LUT or rescale, then through the header's VOI LUT or first window if
    ``settings.window`` is "header". Without a usable one they are stretched between percentiles of all pixels that are
    not padding. MONOCHROME1 is inverted.

    Raises:
        ImageError: dicomdir, no_pixels, colour, not_mr, burned_in, secondary_capture, transfer_syntax,
            wrong_dimensions, too_many_frames, truncated, undecodable, unreadable, mosaic, too_many_pixels, too_small,
            absurd_spacing, not_finite or blank. Single slices of a multi-frame file do not raise: they are listed in
            ``Reading.refused``.
        MissingExtraError: pydicom is not installed.
    """
    dataset = _parse(data)
    try:
        _check(dataset, settings)
        count, mosaic = frame_count(dataset), mosaic_of(dataset)
    except (ImageError, MemoryError, MissingExtraError):
        raise
    except Exception as error:
        # pydicom parses values lazily, and a damaged value can raise any error.
        raise ImageError("unreadable", f"the DICOM header is damaged ({type(error).__name__})") from error
    slices, refused, decoded = [], [], 0
    for decoded, stored in enumerate(_decoded(dataset), 1):
        view, frame = Frame(dataset, decoded - 1), decoded - 1
        try:
            facts, grey = _applied(stored, view, settings)
            cut = [(frame, grey, facts)] if mosaic is None else list(mosaic.slices(grey, facts))
        except ImageError as error:
            if count == 1:
                raise
            refused.append(Refusal(frame, error.reason, str(error)))
            continue
        for number, pixels, its_facts in cut:
            try:
                check_size(pixels.shape[0], pixels.shape[1], settings)
                slices.append(Slice(finish(pixels, settings), number, its_facts))
            except ImageError as error:
                if count == len(cut) == 1:
                    raise
                refused.append(Refusal(number, error.reason, str(error)))
    if decoded != count:
        raise ImageError("wrong_dimensions", f"the header states {count} frames, the file has {decoded}")
    slices.sort(key=lambda s: (s.facts.position is None, s.facts.position or 0.0, s.frame))
    return Reading(slices, refused)


def _applied(stored: npt.NDArray[Any], view: Frame, settings: ReadSettings) -> tuple[ScanFacts, Grey]:
    """Return the facts and grey levels of a frame."""
    try:
        return _facts(view), grey_levels(stored, view, settings)
    except (ImageError, MemoryError, MissingExtraError):
        raise
    except Exception as error:
        # pydicom parses values lazily, and a damaged value can raise any error.
        raise ImageError("unreadable", f"the DICOM header is damaged ({type(error).__name__})") from error


def _decoded(dataset: Dataset) -> Iterator[npt.NDArray[Any]]:
    try:
        yield from stored_frames(dataset)
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        # Decoder plugins can raise any error, and their messages quote header values.
        raise ImageError("undecodable", f"no decoder can read the pixels ({type(error).__name__})") from error


def stored_frames(dataset: Dataset) -> Iterator[npt.NDArray[Any]]:
    """Yield the stored values of each frame, (rows, columns), as pydicom decodes them, without any normalisation."""
    pixels = require("pydicom.pixels")
    if frame_count(dataset) == 1:
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
    sop = str(value_of(dataset, "SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "")
    if sop == _DIRECTORY or "DirectoryRecordSequence" in dataset:
        raise ImageError("dicomdir", "the file is a DICOM directory; give the files that it lists instead")
    if not any(name in dataset for name in _PIXELS):
        raise ImageError("no_pixels", "the DICOM object has no pixels, or the file is cut off")
    if str(value_of(dataset, "BurnedInAnnotation") or "").upper() == "YES" and not settings.allow_burned_in:
        raise ImageError("burned_in", "text is burned into the pixels; set ingest.allow_burned_in to read it")
    secondary = sop == _SECONDARY_CAPTURE or sop.startswith(f"{_SECONDARY_CAPTURE}.") or "ConversionType" in dataset
    if secondary and not settings.allow_secondary_capture:
        raise ImageError(
            "secondary_capture", "a screenshot or film scan; set ingest.allow_secondary_capture to read it"
        )
    if (photometric := value_of(dataset, "PhotometricInterpretation")) is None:
        raise ImageError("unreadable", "the header has no photometric interpretation")
    if int(number_of(dataset, "SamplesPerPixel") or 1) != 1 or photometric not in _GREY:
        raise ImageError("colour", "the pixels are not grey levels")
    _complete(dataset)
    count = frame_count(dataset)
    if count > 1 and str(value_of(dataset, "Modality")) != "MR" and sop not in _MR:
        raise ImageError("not_mr", "a multi-frame file of another modality than MR")
    if count > settings.max_frames:
        raise ImageError("too_many_frames", f"the file has {count:,} frames, the limit is {settings.max_frames:,}")
    rows, columns = int(number_of(dataset, "Rows") or 0), int(number_of(dataset, "Columns") or 0)
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
        rows * columns * count * int(number_of(dataset, "BitsAllocated") or 1)
    ):
        raise ImageError("truncated", f"the file has {stored:,} bytes of pixels, fewer than its dimensions need")


def _complete(dataset: Dataset) -> None:
    """Give what describes the pixels its usual value where the header lacks it; refuse a header without the rest."""
    for keyword in ("Rows", "Columns", "BitsAllocated", "NumberOfFrames"):
        if stated_number(dataset, keyword) is None and keyword != "NumberOfFrames":
            raise ImageError("unreadable", f"the header has no {keyword}")
    if (bits := int(number_of(dataset, "BitsAllocated") or 0)) not in _BITS:
        raise ImageError("unreadable", f"BitsAllocated is {bits} in the header, not one of {_BITS}")
    if number_of(dataset, "NumberOfFrames") is None and "NumberOfFrames" in dataset:
        del dataset.NumberOfFrames  # empty: pydicom would warn
    for keyword, usual in (("SamplesPerPixel", 1), ("BitsStored", bits), ("PixelRepresentation", 0)):
        if number_of(dataset, keyword) is None:
            setattr(dataset, keyword, usual)
    if not 1 <= (number_of(dataset, "BitsStored") or 0) <= bits:
        raise ImageError("unreadable", f"BitsStored in the header is not between 1 and BitsAllocated, {bits}")


def _facts(view: Frame) -> ScanFacts:
    dataset = view.dataset
    orientation = view.numbers("PlaneOrientationSequence", "ImageOrientationPatient")
    origin = view.numbers("PlanePositionSequence", "ImagePositionPatient")
    normal = normal_of(orientation)
    spacing = view.numbers("PixelMeasuresSequence", "PixelSpacing")
    if 0 in spacing:
        spacing = []  # how anonymisers and old converters say that it is not known
    check_spacing(spacing)
    return ScanFacts(
        patient=text_of(dataset, "PatientID"),
        issuer=_issuer(dataset),
        study=text_of(dataset, "StudyInstanceUID"),
        series=text_of(dataset, "SeriesInstanceUID"),
        instance=text_of(dataset, "SOPInstanceUID"),
        accession=text_of(dataset, "AccessionNumber"),
        plane=plane_of(orientation),
        sequence=_sequence_name(view),
        acquired=_acquisition_day(dataset),
        position=float(normal @ np.array(origin)) if normal is not None and len(origin) == 3 else None,
        spacing=spacing[0] if spacing else None,
    )


def _issuer(dataset: Dataset) -> str | None:
    """Return who assigned the PatientID, as ``local&universal&kind`` (PS3.3 §C.7.1.1)."""
    parts = [text_of(dataset, "IssuerOfPatientID")]
    for qualifiers in items_of(dataset, "IssuerOfPatientIDQualifiersSequence")[:1]:
        parts += [text_of(qualifiers, "UniversalEntityID"), text_of(qualifiers, "UniversalEntityIDType")]
    return "&".join(part or "" for part in parts) if any(parts) else None


def _sequence_name(view: Frame) -> str | None:
    dataset = view.dataset
    words = " ".join(filter(None, (text_of(dataset, "SeriesDescription"), text_of(dataset, "ProtocolName"))))
    times = [
        next((number for keyword in keywords for number in view.numbers(group, keyword)), None)
        for group, keywords in _TIMES
    ]
    name = sequence_of_text(words) or sequence_of_times(*times)
    contrast = text_of(dataset, "ContrastBolusAgent") or items_of(dataset, "ContrastBolusAgentSequence")
    return "T1c" if name == "T1" and contrast else name


def _acquisition_day(dataset: Dataset) -> datetime.date | None:
    keywords = ("AcquisitionDate", "AcquisitionDateTime", "SeriesDate", "StudyDate", "ContentDate")
    return first_day(text_of(dataset, keyword) or "" for keyword in keywords)
