"""Headers as they are: empty values, tables of every depth, mosaics, values that are missing."""

import datetime
import struct

import numpy as np
import pytest
from pydicom.dataset import Dataset
from tests.unit.imaging.test_dicom import AXIAL, PERCENTILES, SETTINGS, STORED, mr, only, reason, slices, written

from mrcg.errors import ImageError
from mrcg.imaging.dicom import read_dicom


@pytest.mark.parametrize(
    "fields",
    [
        {"RescaleSlope": "", "RescaleIntercept": ""},
        {"RescaleSlope": "1", "RescaleIntercept": ""},
        {"RescaleSlope": "", "RescaleIntercept": "0"},
        {"RescaleSlope": "0", "RescaleIntercept": "0"},
        {"SamplesPerPixel": None},
        {"PixelRepresentation": None},
        {"BitsStored": None, "HighBit": None},
        {"WindowCenter": "", "WindowWidth": ""},
        {"PixelPaddingValue": ""},
        {"NumberOfFrames": ""},
        {"PixelSpacing": [0, 0]},
        {"PixelSpacing": ""},
        {"ImageOrientationPatient": ""},
    ],
)
def test_what_is_empty_or_missing_is_as_if_it_were_absent(fields):
    assert (only(mr(**fields), PERCENTILES).pixels == only(mr(), PERCENTILES).pixels).all()


def test_a_spacing_of_zero_is_not_known():
    assert only(mr(PixelSpacing=[0, 0])).facts.spacing is None
    assert only(mr(PixelSpacing=[0.5, 0.5])).facts.spacing == 0.5


def test_a_rescale_without_intercept_is_applied():
    twice = only(mr(RescaleSlope="2", RescaleIntercept="", WindowCenter=4096, WindowWidth=8192)).pixels
    assert (twice == only(mr(RescaleSlope="2", RescaleIntercept="0", WindowCenter=4096, WindowWidth=8192)).pixels).all()


@pytest.mark.parametrize(
    ("day", "year"), [("25630115", None), ("13990115", None), ("00010101", None), ("20200115", 2020)]
)
def test_days_of_other_calendars_are_not_known(day, year):
    acquired = only(mr(AcquisitionDate=day)).facts.acquired
    assert acquired == (None if year is None else datetime.date(year, 1, 15))


def test_a_day_that_cannot_be_is_left_for_the_next_that_can():
    assert only(mr(AcquisitionDate="20200230", StudyDate="20200229")).facts.acquired == datetime.date(2020, 2, 29)


@pytest.mark.parametrize(("keyword", "value"), [("Rows", None), ("BitsAllocated", 12), ("BitsStored", 99)])
def test_a_fault_of_the_header_names_its_attribute(keyword, value):
    with pytest.raises(ImageError, match=keyword) as caught:
        read_dicom(written(mr(**{keyword: value})), SETTINGS)
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize("error", [ValueError, IndexError, RuntimeError])
def test_a_value_that_fails_when_it_is_applied_is_a_reason(monkeypatch, error):
    def failing(*_):
        raise error("JANE^DOE42")

    monkeypatch.setattr("mrcg.imaging.dicom.grey_levels", failing)
    assert reason(mr()) == "unreadable"


def lut(depth, values):
    item = Dataset()
    item.LUTDescriptor = [256, 0, depth]
    item.LUTData = values
    item["LUTData"].VR = "OW"
    item["LUTDescriptor"].VR = "US"
    item.ModalityLUTType = "US"
    return [item]


@pytest.mark.parametrize("depth", [8, 10, 12, 14, 16])
def test_modality_tables_of_every_depth_are_applied(depth):
    # A table that turns the levels around.
    stored = (STORED // 16).astype(np.uint16)
    turned = ((255 - np.arange(256)) * (2**depth - 1) // 255).astype("<u2")
    data = turned.tobytes() if depth > 8 else turned.astype(np.uint8).tobytes()
    pixels = only(mr(stored, ModalityLUTSequence=lut(depth, data)), PERCENTILES).pixels
    plain = only(mr(stored), PERCENTILES).pixels
    assert np.abs(pixels.astype(int) - (255 - plain.astype(int))).max() <= 3


# Mosaics -------------------------------------------------------------------------------------------------------------

TILES = [np.random.default_rng(n).integers(1, 4096, (32, 40), dtype=np.uint16) for n in range(7)]
KINDS = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]


def sheet(tiles=TILES, side=3):
    filled = [*tiles, *([np.zeros_like(tiles[0])] * (side * side - len(tiles)))]
    return np.block([filled[row * side : (row + 1) * side] for row in range(side)])


def csa(count):
    """A CSA header, as far as it is read, with another tag before."""
    text = str(count).encode().ljust(8, b"\0")
    tag = b"NumberOfImagesInMosaic".ljust(64, b"\0") + struct.pack("<i4siii", 1, b"US\0\0", 6, 6, 77)
    items = struct.pack("<4i", len(text), len(text), 77, len(text)) + text + struct.pack("<4i", 0, 0, 77, 0) * 5
    return b"SV10\4\3\2\1" + struct.pack("<ii", 2, 77) + b"Other".ljust(84, b"\0") + tag + items


def with_csa(dataset, count):
    dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", csa(count))
    return dataset


def with_number(dataset, count):
    dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", count)
    return dataset


@pytest.mark.parametrize("say", [with_csa, with_number])
def test_a_mosaic_is_cut_into_the_slices_that_its_header_states(say):
    found = slices(
        say(mr(sheet(), ImageType=KINDS, SpacingBetweenSlices=4), 7),
        PERCENTILES.model_copy(update={"max_pixels": 20_000}),
    )
    assert [one.frame for one in found] == list(range(7))
    assert [one.facts.position for one in found] == [7 + 4 * n for n in range(7)]
    assert {one.facts.plane for one in found} == {"axial"}
    whole = only(mr(sheet()), PERCENTILES.model_copy(update={"max_pixels": 20_000})).pixels
    for number, one in enumerate(found):
        row, column = divmod(number, 3)
        assert (one.pixels == whole[row * 32 : row * 32 + 32, column * 40 : column * 40 + 40]).all()


def test_without_a_number_the_acquired_matrix_says_how_large_a_tile_is_and_black_tiles_are_refused():
    tiles = [tile[:, :32] for tile in TILES]
    reading = read_dicom(written(mr(sheet(tiles), ImageType=KINDS, AcquisitionMatrix=[32, 0, 0, 32])), SETTINGS)
    assert [one.frame for one in reading.slices] == list(range(7))
    assert [(one.frame, one.reason) for one in reading.refused] == [(7, "blank"), (8, "blank")]


def test_a_mosaic_that_says_nothing_is_refused_by_name():
    assert reason(mr(sheet(), ImageType=KINDS), SETTINGS.model_copy(update={"max_pixels": 20_000})) == "mosaic"


def test_the_word_on_a_multi_frame_file_or_of_one_image_is_no_mosaic():
    frames = np.stack([tile[:, :32] for tile in TILES[:3]])
    assert len(slices(mr(frames, ImageType=KINDS, ImageOrientationPatient=AXIAL))) == 3
    assert len(slices(with_number(mr(ImageType=KINDS), 1))) == 1
