"""Where a lesion lies in a slice, how large it is and how it stands out: the facts for graded likeness.

They are fractions of the slice, so they hold at every size of it (docs/method.md#graded-likeness).
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt

LesionMask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Lesion:
    """Facts about the lesion of a slice; None where a fact is not stated.

    Attributes:
        y, x: centre, as fractions of the height and the width of the slice, from its top left corner.
        area: share of the slice's pixels.
        contrast: mean grey level of the lesion minus that of its surroundings, as a fraction of the grey range
            (-1 to 1).
    """

    y: float | None = None
    x: float | None = None
    area: float | None = None
    contrast: float | None = None


def first_known(stated: Lesion, measured: Lesion) -> Lesion:
    """Return each fact as it was stated, or where it was not, as it was measured."""
    facts = (one if one is not None else other for one, other in zip(astuple(stated), astuple(measured), strict=True))
    return Lesion(*facts)


def measure_lesion(grey: npt.NDArray[np.uint8], mask: LesionMask) -> Lesion | None:
    """Measure the lesion that a mask marks.

    The surroundings are the other pixels of a box around the lesion that is twice as high and wide.

    Args:
        grey: (height, width) grey levels.
        mask: (height, width), True inside the lesion.

    Returns:
        The facts; None if the mask marks nothing.
    """
    assert mask.shape == grey.shape
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return None
    height, width = mask.shape
    box = _box(rows, height), _box(columns, width)
    around = grey[box][~mask[box]]
    contrast = float(grey[mask].mean() - around.mean()) / 255 if len(around) else None
    return Lesion(
        y=float(rows.mean() + 0.5) / height,
        x=float(columns.mean() + 0.5) / width,
        area=len(rows) / mask.size,
        contrast=contrast,
    )


def _box(places: npt.NDArray[np.intp], size: int) -> slice:
    """Return the range of a lesion along one axis, widened by half its length on both sides."""
    low, high = int(places.min()), int(places.max()) + 1
    margin = (high - low + 1) // 2
    return slice(max(0, low - margin), min(size, high + margin))
