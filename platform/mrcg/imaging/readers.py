"""Read a file of any supported format. The format is detected from the content, not from the file name."""

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

#: Formats whose files contain patient identifiers; they are read only if a pseudonym key is set.
IDENTIFYING = frozenset({"dicom", "matlab"})
_READERS: dict[str, Reader] = {
    "dicom": read_dicom,
    "nifti": read_nifti,
    "matlab": read_matlab,
    "raster": read_raster,
}
_RASTER = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")


def format_of(data: bytes) -> str | None:
    """Return dicom, nifti, matlab or raster; None if the content is none of them."""
    if data.startswith(_RASTER) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        # The 128-byte preamble of a DICOM file may hold anything, e.g. a TIFF header in microscopy.
        return "dicom" if data[128:132] == b"DICM" else "raster"
    if is_matlab(data):
        return "matlab"
    if is_nifti(data):
        return "nifti"
    return "dicom" if is_dicom(data) else None


def query_slice(reading: Reading) -> Grey:
    """Return the slice of a query file that is searched for: the only one, or the middle one of several."""
    return reading.slices[len(reading.slices) // 2].pixels


def read(data: bytes, settings: ReadSettings) -> Reading:
    """Return the slices of a file of any format.

    Raises:
        ImageError: empty, too_many_bytes, not_an_image, or a reason of the format's reader. If no slice of the file can
            be used, the reason of the first one.
        MissingExtraError: the library for the format is not installed.
    """
    if not data:
        raise ImageError("empty", "the file is empty")
    if len(data) > settings.max_file_bytes:
        raise ImageError(
            "too_many_bytes", f"the file has {len(data):,} bytes, the limit is {settings.max_file_bytes:,}"
        )
    name = format_of(data)
    if name is None:
        raise ImageError("not_an_image", f"the file is not DICOM, NIfTI, MATLAB or one of {', '.join(FORMATS)}")
    reading = _READERS[name](data, settings)
    if not reading.slices:
        first = reading.refused[0]
        raise ImageError(
            first.reason, f"none of the {len(reading.refused)} slices can be used; the first one: {first.detail}"
        )
    return reading
