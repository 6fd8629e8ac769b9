"""DICOM files that are refused, and the messages of the refusals."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import uid
from pydicom.encaps import encapsulate
from tests.unit.imaging.test_dicom import (
    CT,
    DIRECTORY,
    SECONDARY,
    SECRET,
    SETTINGS,
    STORED,
    SYNTAXES,
    WIDE,
    mr,
    only,
    percentiles,
    reason,
    slices,
    written,
)

from mrcg.errors import ImageError

MANY = np.stack([STORED] * 9)
REFUSED = [
    ({"BurnedInAnnotation": "YES"}, "burned_in"),
    ({"SOPClassUID": SECONDARY}, "secondary_capture"),
    ({"SOPClassUID": SECONDARY + ".2"}, "secondary_capture"),
    ({"ConversionType": "WSD"}, "secondary_capture"),
    ({"PhotometricInterpretation": "RGB"}, "colour"),
    ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
    ({"PhotometricInterpretation": SECRET}, "colour"),
    ({"SamplesPerPixel": 3}, "colour"),
    ({"PhotometricInterpretation": None}, "unreadable"),
    ({"PixelData": None}, "no_pixels"),
    ({"SOPClassUID": DIRECTORY, "PixelData": None}, "dicomdir"),
    ({"DirectoryRecordSequence": []}, "dicomdir"),
    ({"stored": MANY, "SOPClassUID": CT, "Modality": "CT"}, "not_mr"),
    ({"stored": MANY}, "too_many_frames"),
    ({"PixelSpacing": [1000, 1]}, "absurd_spacing"),
    ({"PixelSpacing": [0.5, -1]}, "absurd_spacing"),
    ({"Rows": None}, "unreadable"),
    ({"BitsAllocated": None}, "unreadable"),
    ({"BitsAllocated": 12}, "unreadable"),
    ({"BitsStored": 40}, "unreadable"),
    ({"Rows": 8}, "too_small"),
    ({"Columns": None}, "unreadable"),
    ({"Rows": 65535, "Columns": 65535}, "too_many_pixels"),
    ({"PixelData": STORED.tobytes()[:-2]}, "truncated"),
    ({"NumberOfFrames": 2}, "truncated"),
    ({"PixelData": STORED.tobytes()[:-2] + b"\0\0", "BitsAllocated": 32}, "truncated"),
    ({"PixelData": bytes(STORED.nbytes)}, "blank"),
]


@pytest.mark.parametrize(("fields", "expected"), REFUSED)
def test_unusable_files_are_refused_with_a_reason(fields, expected):
    assert reason(mr(**fields)) == expected


@pytest.mark.parametrize(("fields", "expected"), REFUSED[:4])
def test_settings_allow_burned_in_text_and_screenshots(fields, expected):
    settings = SETTINGS.model_copy(update={f"allow_{expected}": True})
    assert (only(mr(**fields), settings).pixels == only(mr()).pixels).all()
    other = {"burned_in": "secondary_capture", "secondary_capture": "burned_in"}[expected]
    assert reason(mr(**fields), SETTINGS.model_copy(update={f"allow_{other}": True})) == expected


def test_a_single_slice_of_another_modality_is_read():
    assert only(mr(SOPClassUID=CT, Modality="CT")).pixels.shape == STORED.shape


def test_non_finite_levels_are_refused():
    levels = STORED.astype(np.float32)
    levels[3, 3] = np.nan
    fields = {"PixelData": None, "BitsStored": 32, "HighBit": 31, "PixelRepresentation": None}
    assert reason(mr(levels, FloatPixelData=levels.tobytes(), **fields)) == "not_finite"
    fine = STORED.astype(np.float32)
    grey = only(mr(fine, FloatPixelData=fine.tobytes(), **fields)).pixels
    assert np.abs(grey - percentiles(fine)).max() <= 0.51


def in_syntax(syntax, data=b"\0" * 64):
    dataset = mr(PixelData=encapsulate([data]))
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    return dataset


def test_unknown_transfer_syntaxes_and_invalid_streams_are_refused():
    assert reason(in_syntax(uid.MPEG2MPML)) == "transfer_syntax"
    for syntax in SYNTAXES:
        assert reason(in_syntax(syntax, SECRET.encode() * 8)) == "undecodable"
    unknown = mr()
    unknown.file_meta.TransferSyntaxUID = uid.UID("1.2.3.4.5")
    assert reason(written(unknown, implicit_vr=False, little_endian=True)) == "undecodable"


@pytest.mark.filterwarnings("ignore")
def test_truncated_files_are_refused_with_a_reason():
    plain = written(mr())
    assert reason(plain[:-100]) == "truncated"
    assert reason(plain[:400]) == "no_pixels"
    for syntax in SYNTAXES:
        packed = mr()
        packed.compress(syntax)
        # pydicom drops an element whose end is missing.
        assert reason(written(packed)[:-1000]) in ("no_pixels", "truncated")


#: Ten digits that pydicom writes for every kind of number; the test replaces them in the file.
DIGITS = "1234567890"
NUMBERS = [
    "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "NumberOfFrames", "PixelSpacing",
    "ImageOrientationPatient", "ImagePositionPatient", "RepetitionTime", "EchoTime", "InversionTime", "InstanceNumber",
]  # fmt: skip


@pytest.mark.parametrize("keyword", NUMBERS)
@pytest.mark.parametrize("blank", [False, True])
def test_no_message_quotes_a_header_value(keyword, blank):
    count = {"PixelSpacing": 2, "ImageOrientationPatient": 6, "ImagePositionPatient": 3}.get(keyword, 1)
    fields = {"WindowWidth": 4096, "RescaleSlope": 1, "RescaleIntercept": 0} | {keyword: [DIGITS] * count}
    data = written(mr(**fields, **({"PixelData": bytes(STORED.nbytes)} if blank else {})))
    data = data.replace(DIGITS.encode(), SECRET.encode())
    assert DIGITS.encode() not in data
    needed = keyword.startswith("Rescale") or keyword == "NumberOfFrames"
    if blank or needed:
        assert reason(data) == ("unreadable" if needed else "blank")
    else:
        assert only(data).pixels.shape == STORED.shape


#: Number of bytes of the header: everything before the pixels.
PLAIN = written(mr(**WIDE))
HEADER = PLAIN.rindex(b"\xe0\x7f\x10\0OW")


@given(st.integers(132, HEADER), st.binary(max_size=6), st.integers(0, 6))
def test_a_damaged_header_gives_pixels_or_a_reason(at, noise, gone):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for one in slices(PLAIN[:at] + noise + PLAIN[at + gone :]):
                assert one.pixels.ndim == 2
        except ImageError as error:
            assert error.reason
            assert SECRET not in str(error)


@pytest.mark.parametrize("damage", ["representation", "syntax"])
def test_damage_to_checked_header_fields_gives_a_reason(damage):
    if damage == "representation":
        assert reason(PLAIN[: HEADER + 4] + b"O\xd4" + PLAIN[HEADER + 6 :])
    else:
        dataset = mr()
        dataset.file_meta.TransferSyntaxUID = uid.UID("")
        assert reason(written(dataset, implicit_vr=False, little_endian=True)) == "undecodable"


def test_a_microscope_image_is_not_a_screenshot():
    assert only(mr(SOPClassUID=SECONDARY + "7.1.2")).pixels.shape == STORED.shape
