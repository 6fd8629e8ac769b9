import datetime
import io

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset

from mrcg.config.settings import ReadSettings
from mrcg.errors import ImageError
from mrcg.imaging.dicom import is_dicom, read_dicom, stored_frames

SETTINGS = ReadSettings(max_pixels=10_000, max_frames=8)
PERCENTILES = SETTINGS.model_copy(update={"window": "percentiles"})
MR, ENHANCED, CT = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.2"
SECONDARY, DIRECTORY = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.1.3.10"
AXIAL, CORONAL, SAGITTAL = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]
STORED = np.random.default_rng(0).integers(0, 4096, (32, 40), dtype=np.uint16)
WIDE = {"WindowCenter": 2048, "WindowWidth": 4096}
SECRET = "JANE^DOE42"


def mr(stored=STORED, **fields) -> FileDataset:
    """Return an MR image with SECRET in every field that may hold a name; fields that are None are left out."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MR, "1.2.3.4"
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    bits = stored.itemsize * 8
    names = ("PatientName", "PatientID", "InstitutionName", "OperatorsName", "StudyDescription", "SeriesDescription")
    facts = dict.fromkeys([*names, "ProtocolName", "AccessionNumber", "ImageComments"], SECRET) | {
        "SOPClassUID": MR, "SOPInstanceUID": "1.2.3.4", "Modality": "MR", "ImageOrientationPatient": AXIAL,
        "ImagePositionPatient": [0, 0, 7], "PixelSpacing": [0.5, 0.25], "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "NumberOfFrames": len(stored) if stored.ndim == 3 else None,
        "Rows": stored.shape[-2], "Columns": stored.shape[-1], "BitsAllocated": bits, "BitsStored": bits,
        "HighBit": bits - 1, "PixelRepresentation": int(stored.dtype.kind == "i"), "PixelData": stored.tobytes(),
    }  # fmt: skip
    for name, value in (facts | fields).items():
        if value is not None:
            setattr(dataset, name, value)
    return dataset


def group(**fields) -> list[Dataset]:
    item = Dataset()
    for name, value in fields.items():
        setattr(item, name, value)
    return [item]


def written(dataset, **how) -> bytes:
    out = io.BytesIO()
    pydicom.dcmwrite(out, dataset, **(how or {"enforce_file_format": True}))
    return out.getvalue()


def slices(dataset, settings=SETTINGS):
    reading = read_dicom(dataset if isinstance(dataset, bytes) else written(dataset), settings)
    assert SECRET not in repr(reading)
    return reading.slices


def only(dataset, settings=SETTINGS):
    (one,) = slices(dataset, settings)
    return one


def reason(dataset, settings=SETTINGS):
    with pytest.raises(ImageError) as caught:
        slices(dataset, settings)
    assert SECRET not in str(caught.value)
    return caught.value.reason


def linear(levels, centre, width):
    """The linear window of PS3.3 C.11.2.1.2.1, computed level by level, for output 0..255."""
    out = []
    for level in levels.reshape(-1).tolist():
        if level <= centre - 0.5 - (width - 1) / 2:
            out.append(0.0)
        elif level > centre - 0.5 + (width - 1) / 2:
            out.append(255.0)
        else:
            out.append(((level - (centre - 0.5)) / (width - 1) + 0.5) * 255)
    return np.array(out).reshape(levels.shape)


def percentiles(levels):
    low, high = np.percentile(levels, (0.5, 99.5))
    return np.clip((levels - low) / (high - low), 0, 1) * 255


@given(
    st.sampled_from([np.uint8, np.uint16, np.int16]),
    st.sampled_from([None, (1, 0), (0.5, -300), (3.25, 12.5), (-2, 100)]),
    st.floats(0.1, 0.9),
    st.floats(0.3, 1.5),
    st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
)
def test_levels_are_rescaled_windowed_and_inverted(kind, rescale, centre, width, photometric):
    stored = STORED.astype(np.int32) % 256 if kind == np.uint8 else STORED.astype(np.int32) - 2000 * (kind == np.int16)
    slope, intercept = rescale or (1, 0)
    levels = stored * slope + intercept
    span = float(np.ptp(levels))
    centre, width = round(levels.min() + centre * span, 1), round(width * span, 1)
    fields = {"WindowCenter": centre, "WindowWidth": width, "PhotometricInterpretation": photometric}
    if rescale:
        fields |= {"RescaleSlope": slope, "RescaleIntercept": intercept}
    dataset = mr(stored.astype(kind), **fields)
    for settings, naive in ((SETTINGS, linear(levels, centre, width)), (PERCENTILES, percentiles(levels))):
        naive = 255 - naive if photometric == "MONOCHROME1" else naive
        assert np.abs(only(dataset, settings).pixels - naive).max() <= 0.51


def test_without_a_usable_window_percentiles_are_used():
    expected = only(mr(**WIDE), PERCENTILES).pixels
    for window in ((None, None), (100, 1), (100, 0), (100_000, 50), (100, None)):
        dataset = mr(WindowCenter=window[0], WindowWidth=window[1])
        assert (only(dataset).pixels == expected).all(), window


def test_the_first_of_several_windows_is_used_with_its_function():
    first = only(mr(WindowCenter=1000, WindowWidth=900)).pixels
    assert (only(mr(WindowCenter=[1000, 5], WindowWidth=[900, 7])).pixels == first).all()
    exact = only(mr(WindowCenter=1000, WindowWidth=900, VOILUTFunction="LINEAR_EXACT")).pixels
    assert np.abs(exact - np.clip((STORED - 1000.0) / 900 + 0.5, 0, 1) * 255).max() <= 0.51
    sigmoid = only(mr(WindowCenter=1000, WindowWidth=900, VOILUTFunction="SIGMOID")).pixels
    assert np.abs(sigmoid - 255 / (1 + np.exp(-4 * (STORED - 1000.0) / 900))).max() <= 0.51


def voi_lut(bits):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 0, bits])
    item.add_new("LUTData", "US", ((np.arange(4096) ** 2) >> (24 - bits)).tolist())
    return item


@pytest.mark.parametrize(
    ("bits", "rescale"),
    [
        (12, {}),
        (8, {}),
        (12, {"RescaleSlope": 1, "RescaleIntercept": 0}),
    ],
)
def test_a_voi_lut_takes_precedence_over_the_window(bits, rescale):
    dataset = mr(VOILUTSequence=[voi_lut(bits)], **rescale, **WIDE)
    assert np.abs(only(dataset).pixels - (STORED.astype(int) ** 2 >> (24 - bits)) * 255 / (2**bits - 1)).max() <= 0.51


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_ignored(photometric):
    stored = STORED.astype(np.int16)
    stored[:, :5], stored[:, 5:8] = -2000, -1990
    fields = {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990, "PhotometricInterpretation": photometric}
    grey = only(mr(stored, **fields)).pixels
    assert not grey[:, :8].any()
    inside = percentiles(stored[:, 8:].astype(float))
    assert np.abs(grey[:, 8:] - (inside if photometric == "MONOCHROME2" else 255 - inside)).max() <= 0.51


def enhanced(places, windows, **fields):
    frames = np.stack([np.roll(STORED, n, axis=1) for n in range(len(places))])
    own = [
        group(
            PlanePositionSequence=group(ImagePositionPatient=[1, place, 2]),
            FrameVOILUTSequence=group(WindowCenter=centre, WindowWidth=width),
        )[0]
        for place, (centre, width) in zip(places, windows, strict=True)
    ]
    shared = group(
        PlaneOrientationSequence=group(ImageOrientationPatient=CORONAL),
        PixelMeasuresSequence=group(PixelSpacing=[0.75, 0.5]),
        PixelValueTransformationSequence=group(RescaleSlope=2, RescaleIntercept=-10),
    )
    fields = {"SOPClassUID": ENHANCED, "ImageOrientationPatient": None, "ImagePositionPatient": None} | fields
    fields |= {"PerFrameFunctionalGroupsSequence": own, "SharedFunctionalGroupsSequence": shared, "PixelSpacing": None}
    return mr(frames, **fields), frames


def test_frames_have_their_own_position_and_window():
    windows = [(4000, 6000), (3000, 2000), (5000, 4000)]
    dataset, frames = enhanced([30, -5, 12.5], windows, **WIDE)
    found = slices(dataset)
    assert [one.frame for one in found] == [1, 2, 0]
    assert [one.facts.position for one in found] == [-5, 12.5, 30]
    for one in found:
        assert np.abs(one.pixels - linear(frames[one.frame] * 2.0 - 10, *windows[one.frame])).max() <= 0.51
        assert (one.facts.plane, one.facts.spacing) == ("coronal", 0.75)


def test_only_the_blank_frame_is_refused():
    dataset, frames = enhanced([1, 2, 3], [(4000, 6000)] * 3)
    frames[1] = 9
    dataset.PixelData = frames.tobytes()
    reading = read_dicom(written(dataset), SETTINGS)
    assert [one.frame for one in reading.slices] == [0, 2]
    assert [(one.frame, one.reason) for one in reading.refused] == [(1, "blank")]
    dataset.PixelData = bytes(frames.nbytes)
    assert not read_dicom(written(dataset), SETTINGS).slices


def test_classic_frames_without_positions_keep_their_order():
    found = slices(mr(np.stack([STORED, STORED[::-1], STORED[:, ::-1]]), ImagePositionPatient=None))
    assert [(one.frame, one.facts.position) for one in found] == [(0, None), (1, None), (2, None)]


SYNTAXES = [uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless]


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize("stored", [STORED, STORED.astype(np.int16) - 2000, np.stack([STORED, STORED[::-1]])])
def test_compression_changes_no_pixel(syntax, stored):
    plain = slices(mr(stored, **WIDE))
    packed = mr(stored, **WIDE)
    packed.compress(syntax, generate_instance_uid=False)
    frames = list(stored_frames(pydicom.dcmread(io.BytesIO(written(packed)))))
    assert (np.stack(frames) == stored.reshape(-1, *stored.shape[-2:])).all()
    assert len(slices(packed)) == len(plain)
    assert all((a.pixels == b.pixels).all() for a, b in zip(slices(packed), plain, strict=True))


def test_headers_are_read_in_every_encoding():
    expected = only(mr(**WIDE)).pixels
    plain, deflated, bare, big = mr(**WIDE), mr(**WIDE), Dataset(), Dataset()
    deflated.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    bare.update(mr(**WIDE))
    big.update(mr(**WIDE, PixelData=STORED.astype(">u2").tobytes()))
    files = [
        written(bare, implicit_vr=True, little_endian=True),
        written(bare, implicit_vr=False, little_endian=True),
        written(big, implicit_vr=False, little_endian=False),
        written(deflated),
        b"II*\0".ljust(128, b"x") + written(plain)[128:],
    ]
    for data in files:
        assert is_dicom(data)
        assert (only(data).pixels == expected).all()
    assert not is_dicom(b"hello" * 100)
    assert not is_dicom(b"\x08\0\x05\0")


@pytest.mark.parametrize(
    ("orientation", "plane"),
    [
        (AXIAL, "axial"),
        (CORONAL, "coronal"),
        (SAGITTAL, "sagittal"),
        ([0.97, 0.2, 0.1, -0.2, 0.95, 0.2], "axial"),
        ([1, 0, 0, 1, 0, 0], None),
        ([1, 0, 0], None),
        (None, None),
    ],
)
def test_the_plane_comes_from_the_direction_cosines(orientation, plane):
    facts = only(mr(ImageOrientationPatient=orientation)).facts
    assert facts.plane == plane
    assert (facts.position is None) == (plane is None)


@pytest.mark.parametrize(
    ("fields", "sequence"),
    [
        ({"SeriesDescription": "AX T1 SE"}, "T1"),
        ({"SeriesDescription": "AX T1 SE", "ContrastBolusAgent": "Dotarem"}, "T1c"),
        ({"SeriesDescription": "AX T1 SE POST"}, "T1c"),
        ({"SeriesDescription": "t2_tse_tra", "ContrastBolusAgent": "Dotarem"}, "T2"),
        ({"SeriesDescription": "T2 FLAIR"}, "FLAIR"),
        ({"SeriesDescription": "scout"}, None),
        ({"SeriesDescription": None, "ProtocolName": "T2W_TSE"}, "T2"),
        ({"SeriesDescription": None, "ProtocolName": None, "RepetitionTime": 500, "EchoTime": 10}, "T1"),
        ({"RepetitionTime": 4000, "EchoTime": 100}, "T2"),
        ({"RepetitionTime": 9000, "EchoTime": 120, "InversionTime": 2500}, "FLAIR"),
        ({"RepetitionTime": 500, "EchoTime": 10, "ContrastBolusAgent": "Dotarem"}, "T1c"),
    ],
)
def test_the_sequence_comes_from_descriptions_then_from_times(fields, sequence):
    assert only(mr(**fields)).facts.sequence == sequence


@pytest.mark.parametrize("contrast", [False, True])
def test_the_sequence_of_enhanced_frames_comes_from_their_times(contrast):
    groups = group(
        MRTimingAndRelatedParametersSequence=group(RepetitionTime=500.0),
        MREchoSequence=group(EffectiveEchoTime=10.0),
    )
    agent = {"ContrastBolusAgentSequence": group(CodeMeaning="Gadolinium")} if contrast else {}
    dataset = mr(SOPClassUID=ENHANCED, SharedFunctionalGroupsSequence=groups, **agent)
    assert only(dataset).facts.sequence == ("T1c" if contrast else "T1")


@pytest.mark.parametrize(
    ("fields", "day"),
    [
        ({"AcquisitionDate": "20200229", "StudyDate": "20190101"}, datetime.date(2020, 2, 29)),
        ({"AcquisitionDateTime": "20200229101500.25"}, datetime.date(2020, 2, 29)),
        ({"AcquisitionDate": "20200230", "StudyDate": "20190101"}, datetime.date(2019, 1, 1)),
        ({"StudyDate": "2019.01.02"}, datetime.date(2019, 1, 2)),
        ({}, None),
    ],
)
def test_the_day_is_the_first_valid_date(fields, day):
    data = written(mr(**fields))
    assert only(data).facts.acquired == day


def test_raw_identifiers_are_facts():
    fields = {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3", "PatientID": " P7 "}
    facts = only(mr(**fields)).facts
    assert (facts.patient, facts.study, facts.series, facts.instance) == ("P7", "1.2", "1.3", "1.2.3.4")
    assert (facts.accession, facts.position, facts.spacing, facts.label) == (SECRET, 7, 0.5, None)
    assert only(mr(PatientID="", AccessionNumber=None)).facts.patient is None
