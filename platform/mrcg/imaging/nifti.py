"""NIfTI volumes (.nii, .nii.gz), turned to canonical orientation and read as selected slices."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from mrcg.config.settings import ReadSettings
from mrcg.errors import ImageError, require
from mrcg.imaging.sequences import PLANES
from mrcg.imaging.slices import Grey, Reading, Refusal, ScanFacts, Slice, check_size, check_spacing, finish, stretch

#: Decompressed bytes of a header that are enough to detect the format.
_HEADER_BYTES = 544
_GZIP = b"\x1f\x8b"


def is_nifti(data: bytes) -> bool:
    """Return whether this is a NIfTI-1 or NIfTI-2 file, compressed or not; a detached header (.hdr) counts, too."""
    head = data[:_HEADER_BYTES]
    if data.startswith(_GZIP):
        try:
            head = zlib.decompressobj(wbits=31).decompress(data[:65_536], _HEADER_BYTES)
        except zlib.error:
            return False
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")


def read_nifti(data: bytes, settings: ReadSettings) -> Reading:
    """Return slices of a volume: in each plane of the settings, every k-th slice or the most informative of those.

    Grey levels are stretched between percentiles of the whole volume. Slices have the radiological orientation:
    anterior at the top in axial slices, superior at the top in the others, the patient's right on the left. Single
    blank slices do not raise: they are listed in ``Reading.refused``.

    Raises:
        ImageError: detached_header, truncated, unreadable, colour, not_a_volume, four_dimensional, too_many_pixels,
            too_small, absurd_spacing, not_finite or blank.
        MissingExtraError: nibabel is not installed.
    """
    image = _load(_decompress(data, settings))
    shape = image.shape
    if len(shape) > 3 and any(size != 1 for size in shape[3:]):
        raise ImageError(
            "four_dimensional",
            f"the image has {len(shape)} dimensions; save each volume of the series as a file of its own",
        )
    if len(shape) < 2:
        raise ImageError("not_a_volume", f"the image has {len(shape)} dimensions, a volume has 3")
    # Checked before the voxels are loaded: they are floats while they are stretched.
    if (voxels := int(np.prod(shape, dtype=np.int64))) > settings.max_voxels:
        raise ImageError("too_many_pixels", f"{voxels:,} voxels, the limit is {settings.max_voxels:,}")
    volume, spacing = _canonical(image)
    return _slices(stretch(volume), spacing, settings)


def _decompress(data: bytes, settings: ReadSettings) -> bytes:
    if not data.startswith(_GZIP):
        return data
    limit = settings.max_voxels * 8 + 2**16  # the second term allows for the header and its extensions
    decompressed = bytearray()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            # In blocks: a single read with the limit as size would allocate that much memory for every small volume.
            while len(decompressed) <= limit and (block := file.read(2**20)):
                decompressed += block
    except (EOFError, OSError, zlib.error) as error:
        raise ImageError("truncated", "the compressed file ends early or is damaged") from error
    if len(decompressed) > limit:
        raise ImageError("too_many_pixels", f"more than {limit:,} bytes when decompressed")
    return bytes(decompressed)


def _load(data: bytes) -> Any:
    nibabel = require("nibabel")
    if data[344:348] == b"ni1\0" or data[4:8] == b"ni2\0":
        raise ImageError("detached_header", "the voxels of this header are in another file; save both as one .nii file")
    image_class = nibabel.Nifti2Image if data[4:8] == b"n+2\0" else nibabel.Nifti1Image
    try:
        return image_class.from_bytes(data)
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError("unreadable", f"the NIfTI header is damaged ({type(error).__name__})") from error


def _canonical(image: Any) -> tuple[npt.NDArray[np.float32], tuple[float, ...]]:
    """Return levels (x, y, z), with x to the patient's right, y to the front and z up, and each axis' spacing in mm."""
    nibabel = require("nibabel")
    try:
        if image.get_data_dtype().kind not in "iuf":
            raise ImageError("colour", "the voxels are not grey levels")
        shape = (*image.shape, 1)[:3]
        if image.shape != shape:
            image = nibabel.Nifti1Image(np.asanyarray(image.dataobj).reshape(shape), image.affine, image.header)
        spacing = tuple(float(size) for size in image.header.get_zooms()[:3])
        check_spacing(spacing)
        canonical = nibabel.as_closest_canonical(image)
        volume = np.asarray(canonical.dataobj, dtype=np.float32)
        zooms = tuple(float(size) for size in canonical.header.get_zooms()[:3])
    except (ImageError, MemoryError):
        raise
    except (OSError, EOFError, ValueError) as error:
        raise ImageError("truncated", "the file has fewer voxels than its header states") from error
    except Exception as error:
        raise ImageError("unreadable", f"the volume cannot be read ({type(error).__name__})") from error
    return volume, zooms


def _slices(volume: Grey, spacing: tuple[float, ...], settings: ReadSettings) -> Reading:
    slices: list[Slice] = []
    refused: list[Refusal] = []
    for plane in settings.volume_planes:
        axis = PLANES.index(plane)
        height, width = (volume.shape[other] for other in (2, 1, 0) if other != axis)
        check_size(height, width, settings)
        for number in _select_slices(volume, axis, settings):
            frame = PLANES.index(plane) * 100_000 + number
            row_spacing = spacing[1] if plane == "axial" else spacing[2]
            facts = ScanFacts(plane=plane, position=number * spacing[axis], spacing=row_spacing)
            try:
                grey = finish(_to_image(np.take(volume, number, axis=axis)), settings)
            except ImageError as error:
                refused.append(Refusal(frame, error.reason, str(error)))
                continue
            slices.append(Slice(grey, frame, facts))
    return Reading(slices, refused)


def _to_image(plane: Grey) -> Grey:
    """Turn a plane, (rightward or frontward, frontward or upward), into (rows, columns): both axes are reversed."""
    return np.ascontiguousarray(plane[::-1, ::-1].T)


def _select_slices(volume: Grey, axis: int, settings: ReadSettings) -> list[int]:
    """Return the numbers of the slices to read: of every k-th slice those with the largest spread of grey levels."""
    numbers = list(range(0, volume.shape[axis], settings.volume_step))
    if not settings.volume_slices or len(numbers) <= settings.volume_slices:
        return numbers
    others = tuple(other for other in range(3) if other != axis)
    spread = volume.std(axis=others, dtype=np.float64)
    best = sorted(numbers, key=lambda number: (-spread[number], number))[: settings.volume_slices]
    return sorted(best)
