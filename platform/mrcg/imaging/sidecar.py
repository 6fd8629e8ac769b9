"""The JSON file that dcm2niix and BIDS put beside a NIfTI volume: what the DICOM header said of it.

Only listed fields are read, as of a DICOM header; names, ids and birth dates that a converter left in it are not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mrcg.imaging.sequences import sequence_of_text, sequence_of_times
from mrcg.imaging.slices import ScanFacts, first_day

#: A sidecar is a few KiB; a larger file is none.
MAX_BYTES = 2**20
_VOLUMES = (".nii.gz", ".nii")
_CONTRAST = ("ContrastBolusIngredient", "ContrastBolusAgent")
_DAYS = ("AcquisitionDateTime", "AcquisitionDate", "SeriesDate", "StudyDate")


def sidecar_key(key: str) -> str | None:
    """Return the path of the sidecar of a volume; None for other files."""
    suffix = next((suffix for suffix in _VOLUMES if key.lower().endswith(suffix)), None)
    return None if suffix is None else f"{key[: -len(suffix)]}.json"


def read_sidecar(data: bytes) -> ScanFacts:
    """Return sequence and day of acquisition; nothing where the content is no sidecar."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return ScanFacts()
    if not isinstance(content, dict):
        return ScanFacts()
    words = " ".join(text for name in ("SeriesDescription", "ProtocolName") if (text := _text(content, name)))
    # BIDS states times in seconds, DICOM in ms.
    times = (_milliseconds(content.get(f"{name}Time")) for name in ("Repetition", "Echo", "Inversion"))
    sequence = sequence_of_text(words) or sequence_of_times(*times)
    contrast = any(_text(content, name) for name in _CONTRAST)
    acquired = first_day(_text(content, name) for name in _DAYS)
    return ScanFacts(sequence="T1c" if sequence == "T1" and contrast else sequence, acquired=acquired)


def _text(content: Mapping[str, Any], name: str) -> str:
    value = content.get(name)
    return value.strip() if isinstance(value, str) else ""


def _milliseconds(seconds: Any) -> float | None:
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    return 1000.0 * seconds if number and 0 <= seconds < 1e6 else None
