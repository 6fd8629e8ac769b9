"""Values of a DICOM header, as damaged and as empty as they come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mrcg.errors import ImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


class Frame:
    """The header as it applies to one frame: the functional groups take precedence over the top level."""

    def __init__(self, dataset: Dataset, frame: int) -> None:
        self.dataset = dataset
        self._groups = []
        per_frame = items_of(dataset, "PerFrameFunctionalGroupsSequence")
        if frame < len(per_frame):
            self._groups.append(per_frame[frame])
        self._groups += items_of(dataset, "SharedFunctionalGroupsSequence")[:1]

    def holder(self, group: str, keyword: str) -> Dataset:
        """Return the dataset that has a value of a keyword: the item of a functional group if it has, else the top."""
        for groups in self._groups:
            for item in items_of(groups, group)[:1]:
                if value_of(item, keyword) is not None:
                    return item
        return self.dataset

    def numbers(self, group: str, keyword: str) -> list[float]:
        """Return the numbers of a keyword; empty if it is absent or not numeric."""
        return numbers_of(self.holder(group, keyword), keyword)


def frame_count(dataset: Dataset) -> int:
    """Return the number of frames, at least 1."""
    return max(1, int(number_of(dataset, "NumberOfFrames") or 1))


def items_of(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence; empty if it is absent or empty."""
    value = value_of(dataset, keyword)
    return list(value) if value is not None and not isinstance(value, (str, bytes)) else []


def value_of(dataset: Dataset, keyword: str) -> Any:
    """Return a header value; None if it is absent, empty or cannot be parsed."""
    try:
        value = dataset.get(keyword)
    except MemoryError:
        raise
    except Exception:  # pydicom parses lazily, and a damaged value can raise any error
        return None
    return None if value is None or (isinstance(value, str) and not value.strip(" \0")) else value


def text_of(dataset: Dataset, keyword: str) -> str | None:
    """Return a text as the header has it, without padding: several values are separated by backslashes."""
    value = value_of(dataset, keyword)
    if value is None:
        return None
    several = not isinstance(value, (str, bytes)) and isinstance(value, Sequence)
    return ("\\".join(map(str, value)) if several else str(value)).strip(" \0") or None


def numbers_of(dataset: Dataset, keyword: str) -> list[float]:
    """Return the finite numbers of a keyword; empty if one of them is no number."""
    value = value_of(dataset, keyword)
    if value is None:
        return []
    try:
        items: Sequence[Any] = [value] if isinstance(value, (str, int, float)) else list(value)
        numbers = [float(item) for item in items]
    except (TypeError, ValueError):
        return []
    return numbers if all(math.isfinite(number) for number in numbers) else []


def stated_number(dataset: Dataset, keyword: str) -> float | None:
    """Return the first number of a keyword on which pixels depend; None if it is absent or empty.

    Raises:
        ImageError: unreadable, if the header has something else than a number there.
    """
    number = number_of(dataset, keyword)
    if number is None and keyword in dataset:
        raw = dataset.get_item(keyword).value  # not parsed yet: that may be what fails
        if raw is not None and str(raw if isinstance(raw, str) else bytes(raw).decode("latin1")).strip(" \0"):
            raise ImageError("unreadable", f"{keyword} in the header is no number")
    return number


def number_of(dataset: Dataset, keyword: str) -> float | None:
    """Return the first number of a keyword."""
    return next(iter(numbers_of(dataset, keyword)), None)
