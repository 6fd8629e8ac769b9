"""Mosaics: a Siemens scanner stores all slices of a volume as tiles of one image, row by row, the rest of it black."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mrcg.errors import ImageError
from mrcg.imaging.dicom_header import frame_count, number_of, numbers_of, value_of
from mrcg.imaging.slices import Grey, ScanFacts

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

#: Private elements of Siemens: the block's creator, the group and the element within the block.
_NUMBER_OF_IMAGES = ("SIEMENS MR HEADER", 0x0019, 0x0A)
_CSA_IMAGE_HEADER = ("SIEMENS CSA HEADER", 0x0029, 0x10)
_CSA_NAME_BYTES, _CSA_TAG_BYTES = 64, 84


@dataclass(frozen=True)
class Mosaic:
    """How an image is cut: its number of tiles in a row and in a column, the number of slices, mm between slices."""

    side: int
    count: int
    spacing: float | None

    def slices(self, grey: Grey, facts: ScanFacts) -> Iterator[tuple[int, Grey, ScanFacts]]:
        """Yield the number, the pixels and the facts of each slice of a mosaic."""
        height, width = (size // self.side for size in grey.shape)
        for number in range(self.count):
            row, column = divmod(number, self.side)
            tile = grey[row * height : (row + 1) * height, column * width : (column + 1) * width]
            known = facts.position is not None and self.spacing is not None
            position = (facts.position or 0.0) + number * (self.spacing or 0.0) if known else None
            yield number, np.ascontiguousarray(tile), replace(facts, position=position)


def mosaic_of(dataset: Dataset) -> Mosaic | None:
    """Return how to cut a mosaic; None where the file is none, such as an enhanced file that inherited the word.

    Raises:
        ImageError: mosaic, if the header does not say how many slices it has, or they do not fill the image.
    """
    kinds = value_of(dataset, "ImageType")
    if kinds is None or isinstance(kinds, str) or "MOSAIC" not in list(kinds) or frame_count(dataset) > 1:
        return None
    rows, columns = int(number_of(dataset, "Rows") or 0), int(number_of(dataset, "Columns") or 0)
    stated = _stated_count(dataset)
    if stated == 1:
        return None
    side = math.ceil(math.sqrt(stated)) if stated else _side_of_matrix(dataset, rows, columns)
    if not side or rows % side or columns % side:
        raise ImageError("mosaic", "the image is a mosaic, and its header does not say how to cut it")
    if side == 1:
        return None
    gap = number_of(dataset, "SpacingBetweenSlices") or number_of(dataset, "SliceThickness")
    # Without a stated number the last tiles may be black: those are refused as blank, one by one.
    return Mosaic(side, stated or side * side, gap)


def _stated_count(dataset: Dataset) -> int | None:
    creator, group, element = _NUMBER_OF_IMAGES
    try:
        return int(dataset.private_block(group, creator)[element].value)
    except (KeyError, TypeError, ValueError):
        pass  # an older scanner: only the CSA header has it
    creator, group, element = _CSA_IMAGE_HEADER
    try:
        return _csa_number(bytes(dataset.private_block(group, creator)[element].value), b"NumberOfImagesInMosaic")
    except (KeyError, TypeError, ValueError, struct.error):
        return None


def _csa_number(csa: bytes, name: bytes) -> int | None:
    """Return the first number of a tag of a CSA header (version 2, "SV10", or 1)."""
    place = csa.find(name + b"\0")
    if place < 0:
        return None
    # Name, multiplicity, VR, syngo type, number of items, a check word; then each item: four lengths and its text.
    items = struct.unpack_from("<i", csa, place + _CSA_NAME_BYTES + 12)[0]
    place += _CSA_TAG_BYTES
    for _ in range(min(items, 64)):
        length = struct.unpack_from("<4i", csa, place)[1]
        text = csa[place + 16 : place + 16 + max(0, length)].split(b"\0")[0].strip()
        if re.fullmatch(rb"\d{1,5}", text):
            return int(text)
        place += 16 + (max(0, length) + 3) // 4 * 4
    return None


def _side_of_matrix(dataset: Dataset, rows: int, columns: int) -> int | None:
    """Return the number of tiles in a row, from the acquired matrix: tiles are at least as large, and equal."""
    matrix = [int(size) for size in numbers_of(dataset, "AcquisitionMatrix") if size > 0]
    if not matrix or rows != columns:
        return None
    side = rows // max(matrix)
    return side if side and rows % side == 0 else None
