"""One call for every format: what a file is, is told by its content and never by its name."""

from __future__ import annotations

from collections.abc import Callable

from mrcg.config.settings import ReadSettings
from mrcg.errors import ImageError
from mrcg.imaging.dicom import is_dicom, read_dicom
from mrcg.imaging.matlab import is_matlab, read_matlab
from mrcg.imaging.nifti import is_nifti, read_nifti
from mrcg.imaging.raster import FORMATS, read_raster
from mrcg.imaging.slices import Grey, Reading

Reader = Callable[[bytes, ReadSettings], Reading]

#: Formats whose files carry identifiers of people: read only where they can be made pseudonyms.
IDENTIFYING = frozenset({"dicom", "matlab"})
_READERS: dict[str, Reader] = {
    "dicom": read_dicom,
    "nifti": read_nifti,
    "matlab": read_matlab,
    "raster": read_raster,
}
_RASTER = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")


def format_of(data: bytes) -> str | None:
    """dicom, nifti, matlab or raster; None where the content is none of them."""
    if data.startswith(_RASTER) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        # A DICOM file may start with anything, also with a TIFF header for microscopes.
        return "dicom" if data[128:132] == b"DICM" else "raster"
    if is_matlab(data):
        return "matlab"
    if is_nifti(data):
        return "nifti"
    return "dicom" if is_dicom(data) else None


def query_slice(reading: Reading) -> Grey:
    """The slice of a file that a search goes by: its only one, or the middle one of a volume."""
    return reading.slices[len(reading.slices) // 2].pixels


def read(data: bytes, settings: ReadSettings) -> Reading:
    """The slices of a file of any format.

    Raises:
        ImageError: empty, too_many_bytes, not_an_image, or a reason of the format's reader. Where not one
            slice of many can be used, that of the first.
    """
    if not data:
        raise ImageError("empty", "the file has no bytes")
    if len(data) > settings.max_file_bytes:
        raise ImageError("too_many_bytes", f"{len(data):,} bytes, the limit is {settings.max_file_bytes:,}")
    name = format_of(data)
    if name is None:
        raise ImageError("not_an_image", f"not DICOM, NIfTI, MATLAB or one of {', '.join(FORMATS)}")
    reading = _READERS[name](data, settings)
    if not reading.slices:
        first = reading.refused[0]
        raise ImageError(first.reason, f"none of its {len(reading.refused)} slices can be used: {first.detail}")
    return reading
