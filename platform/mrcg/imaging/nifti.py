"""NIfTI volumes (.nii, .nii.gz) in canonical orientation, some of their slices."""

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
from mrcg.imaging.slices import Facts, Grey, Reading, Refusal, Slice, check_size, check_spacing, finish, stretch

#: Decompressed bytes of a header: enough to tell what a file is.
_HEADER = 544
_GZIP = b"\x1f\x8b"


def is_nifti(data: bytes) -> bool:
    """Whether this is a NIfTI-1 or NIfTI-2 file, compressed or not; a header without its pixels counts."""
    head = data[:_HEADER]
    if data.startswith(_GZIP):
        try:
            head = zlib.decompressobj(wbits=31).decompress(data[:65_536], _HEADER)
        except zlib.error:
            return False
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")


def read_nifti(data: bytes, settings: ReadSettings) -> Reading:
    """Slices of a volume: the chosen planes, and of each the most informative or every k-th one.

    Grey levels are stretched between percentiles of the whole volume, and slices are turned as radiologists
    look at them: front up in axial ones, head up in the others, the patient's right on the left.

    Raises:
        ImageError: detached_header, truncated, unreadable, not_a_volume, four_dimensional, too_many_pixels,
            absurd_spacing, not_finite or blank.
        MissingExtraError: nibabel is not installed.
    """
    image = _load(_unpacked(data, settings))
    shape = image.shape
    if len(shape) > 3 and any(size != 1 for size in shape[3:]):
        raise ImageError("four_dimensional", f"{len(shape)} dimensions; split a series of volumes into volumes")
    if len(shape) < 2:
        raise ImageError("not_a_volume", f"{len(shape)} dimensions")
    # As floats while it is stretched.
    if (voxels := int(np.prod(shape, dtype=np.int64))) > settings.max_voxels:
        raise ImageError("too_many_pixels", f"{voxels:,} voxels, the limit is {settings.max_voxels:,}")
    volume, spacing = _canonical(image)
    return _slices(stretch(volume), spacing, settings)


def _unpacked(data: bytes, settings: ReadSettings) -> bytes:
    if not data.startswith(_GZIP):
        return data
    limit = settings.max_voxels * 8 + 2**16  # and the header with its extensions
    unpacked = bytearray()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            # In blocks: one read of the limit would take the limit's memory for every small volume.
            while len(unpacked) <= limit and (block := file.read(2**20)):
                unpacked += block
    except (EOFError, OSError, zlib.error) as error:
        raise ImageError("truncated", "the compressed volume ends early or is damaged") from error
    if len(unpacked) > limit:
        raise ImageError("too_many_pixels", f"more than {limit:,} bytes when unpacked")
    return bytes(unpacked)


def _load(data: bytes) -> Any:
    nibabel = require("nibabel")
    if data[344:348] == b"ni1\0" or data[4:8] == b"ni2\0":
        raise ImageError("detached_header", "a header whose voxels are in another file; write it as one .nii file")
    kind = nibabel.Nifti2Image if data[4:8] == b"n+2\0" else nibabel.Nifti1Image
    try:
        return kind.from_bytes(data)
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError("unreadable", f"the NIfTI header is damaged ({type(error).__name__})") from error


def _canonical(image: Any) -> tuple[npt.NDArray[np.float32], tuple[float, ...]]:
    """(x, y, z) levels with x to the right, y to the front, z up, and the spacing of each axis in mm."""
    nibabel = require("nibabel")
    try:
        if image.get_data_dtype().kind not in "iuf":
            raise ImageError("colour", "its voxels are not grey levels")
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
        raise ImageError("truncated", "fewer voxels than its header states") from error
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
        for number in _chosen(volume, axis, settings):
            frame = PLANES.index(plane) * 100_000 + number
            rows = spacing[1] if plane == "axial" else spacing[2]
            facts = Facts(plane=plane, position=number * spacing[axis], spacing=rows)
            try:
                grey = finish(_turned(np.take(volume, number, axis=axis)), settings)
            except ImageError as error:
                refused.append(Refusal(frame, error.reason, str(error)))
                continue
            slices.append(Slice(grey, frame, facts))
    return Reading(slices, refused)


def _turned(plane: Grey) -> Grey:
    """A plane with its two axes (rightward or frontward, upward or frontward) as an image: both fall."""
    return np.ascontiguousarray(plane[::-1, ::-1].T)


def _chosen(volume: Grey, axis: int, settings: ReadSettings) -> list[int]:
    """Numbers of the slices to take: every k-th one, and of those the most informative."""
    numbers = list(range(0, volume.shape[axis], settings.volume_step))
    if not settings.volume_slices or len(numbers) <= settings.volume_slices:
        return numbers
    others = tuple(other for other in range(3) if other != axis)
    spread = volume.std(axis=others, dtype=np.float64)
    best = sorted(numbers, key=lambda number: (-spread[number], number))[: settings.volume_slices]
    return sorted(best)
