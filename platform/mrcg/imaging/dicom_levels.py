"""From the stored values of a DICOM file to grey levels: modality LUT or rescale, VOI LUT or window, padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mrcg.config.settings import ReadSettings
from mrcg.errors import ImageError, require
from mrcg.imaging.dicom_header import Frame, items_of, number_of, numbers_of, stated_number, value_of
from mrcg.imaging.slices import Grey, Levels, stretch, to_grey

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def grey_levels(stored: npt.NDArray[Any], view: Frame, settings: ReadSettings) -> Grey:
    """Return the grey levels of a frame from its stored values.

    Raises:
        ImageError: wrong_dimensions, unreadable, not_finite or blank.
    """
    dataset = view.dataset
    if stored.ndim != 2:
        raise ImageError("wrong_dimensions", f"a frame has {stored.ndim} dimensions, not 2")
    mask = _non_padding(stored, dataset)
    rescaled = _rescaled(stored, view)
    levels: Levels = rescaled.astype(np.float32)
    if not np.isfinite(levels).all():
        raise ImageError("not_finite", "some pixels are NaN or infinite")
    grey = _apply_window(rescaled, view) if settings.window == "header" else None
    if grey is None or grey.min() == grey.max():
        grey = stretch(levels, mask)
    if value_of(dataset, "PhotometricInterpretation") == "MONOCHROME1":
        grey = 255 - grey
    if mask is not None:
        grey[~mask] = 0
    return grey


def _rescaled(stored: npt.NDArray[Any], view: Frame) -> npt.NDArray[Any]:
    """Apply the modality LUT, else the rescale (PS3.3 C.11.1); a slope or intercept that is empty or 0 changes nothing.

    pydicom's own function is not used: version 3.0 fails at an empty slope, and at tables of other than 8 or 16 bits.
    """
    for lut in items_of(view.dataset, "ModalityLUTSequence")[:1]:
        if (table := _Table.of(lut)) is not None:
            return table.look_up(stored)
    slope, intercept = (
        stated_number(view.holder("PixelValueTransformationSequence", keyword), keyword)
        for keyword in ("RescaleSlope", "RescaleIntercept")
    )
    if slope is None and intercept is None:
        return stored
    rescaled = stored.astype(np.float64) * (slope or 1.0)
    rescaled += intercept or 0.0
    return rescaled


def _apply_window(levels: npt.NDArray[Any], view: Frame) -> Grey | None:
    """Return grey levels by the header's VOI LUT or first window; None if the header has neither in usable form."""
    from pydicom.dataset import Dataset

    pixels = require("pydicom.pixels")
    for lut in items_of(view.dataset, "VOILUTSequence")[:1]:
        if (table := _Table.of(lut)) is not None:
            return to_grey(table.look_up(levels) * (255.0 / (2**table.bits - 1)))
    holder = view.holder("FrameVOILUTSequence", "WindowWidth")
    centre, width = numbers_of(holder, "WindowCenter"), numbers_of(holder, "WindowWidth")
    if not centre or not width or width[0] <= 1:
        return None
    # A separate header that states eight bits makes the output of the window 0..255.
    window = Dataset()
    window.PhotometricInterpretation = "MONOCHROME2"
    window.PixelRepresentation, window.BitsStored = 0, 8
    window.WindowCenter, window.WindowWidth = centre[0], width[0]
    function = str(value_of(holder, "VOILUTFunction") or "LINEAR").upper()
    window.VOILUTFunction = function if function in ("LINEAR", "LINEAR_EXACT", "SIGMOID") else "LINEAR"
    return to_grey(pixels.apply_windowing(levels, window))


@dataclass(frozen=True)
class _Table:
    """A lookup table of the header (PS3.3 C.11.1.1, C.11.2.1.1): its values, its first input, its bits.

    pydicom's own functions are not used: version 3.0 rejects rescaled values, and wraps the indices of 8-bit tables.
    """

    values: npt.NDArray[Any]
    first: float
    bits: int

    @classmethod
    def of(cls, lut: Dataset) -> _Table | None:
        """Return the table of a sequence's item; None if it is invalid."""
        descriptor, data = numbers_of(lut, "LUTDescriptor"), value_of(lut, "LUTData")
        if len(descriptor) != 3 or data is None or not 1 <= descriptor[2] <= 16:
            return None
        count, first, bits = int(descriptor[0]) or 65_536, descriptor[1], int(descriptor[2])
        if isinstance(data, bytes):
            values = np.frombuffer(data, dtype=np.uint8 if len(data) < 2 * count else "<u2")
        else:
            values = np.atleast_1d(np.asarray(data))
        return None if len(values) < count else cls(values[:count], first, bits)

    def look_up(self, levels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return the table's value of each level; levels outside it have its first or last value."""
        indices = np.clip(np.rint(levels.astype(np.float64) - self.first), 0, len(self.values) - 1)
        return self.values[indices.astype(np.intp)].astype(np.float32)


def _non_padding(stored: npt.NDArray[Any], dataset: Dataset) -> npt.NDArray[np.bool_] | None:
    """Return True where a pixel is not padding (PS3.3 C.7.5.1.1.2); None if no pixel or every pixel is padding."""
    value = number_of(dataset, "PixelPaddingValue")
    if value is None:
        return None
    limit = number_of(dataset, "PixelPaddingRangeLimit")
    low, high = sorted((value, value if limit is None else limit))
    mask: npt.NDArray[np.bool_] = (stored < low) | (stored > high)
    return None if mask.all() or not mask.any() else mask
