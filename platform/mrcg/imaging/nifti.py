"""NIfTI volumes (.nii, .nii.gz), turned to canonical orientation and read as selected slices."""

from __future__ import annotations

import gzip
import io
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mrcg.config.settings import Plane, ReadSettings
from mrcg.errors import ImageError, require
from mrcg.imaging.sequences import PLANES
from mrcg.imaging.slices import Grey, Reading, Refusal, ScanFacts, Slice, check_size, check_spacing, finish, stretch

#: The axis of the slices has a spacing of at least this many times that of the others.
_THICK = 1.25
#: A slice whose pixels are longer than wide by more than this is a strip through a stack of thick slices.
_STRIP = 3.0
#: Share of the voxels inside the head that may be NaN or infinite; outside it, all may.
NOT_FINITE_INSIDE = 0.001
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

    Grey levels are stretched between percentiles of the whole volume; voxels outside the head that are NaN or infinite
    become black. Slices have the radiological orientation: anterior at the top in axial slices, superior at the top in
    the others, the patient's right on the left. Blank slices, and planes that are too thin, do not raise: they are
    listed in ``Reading.refused``.

    Raises:
        ImageError: detached_header, truncated, unreadable, colour, not_a_volume, four_dimensional, too_many_pixels,
            too_small, thin_plane, absurd_spacing, not_finite or blank; of the planes only if none can be used.
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
    volume = _canonical(image)
    finite = np.isfinite(volume.levels)
    if finite.all():
        return _slices(stretch(volume.levels), volume, settings)
    _check_background(finite)
    return _slices(stretch(volume.levels, finite), volume, settings, ~finite)


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


@dataclass(frozen=True)
class _Volume:
    """Levels (x, y, z), with x to the patient's right, y to the front and z up.

    Attributes:
        levels: of the voxels.
        spacing: of each axis in mm.
        stacked: axis along which slices were acquired, by the header; None if it does not say.
    """

    levels: npt.NDArray[np.float32]
    spacing: tuple[float, ...]
    stacked: int | None

    @property
    def acquired(self) -> int:
        """The axis across the slices that were acquired: the header's, else the thickest, else that of axial slices."""
        if self.stacked is not None:
            return self.stacked
        _, second_thickest, thickest = sorted(self.spacing)
        return int(np.argmax(self.spacing)) if thickest >= _THICK * second_thickest else 2


def _canonical(image: Any) -> _Volume:
    nibabel = require("nibabel")
    try:
        if image.get_data_dtype().kind not in "iuf":
            raise ImageError("colour", "the voxels are not grey levels")
        shape = (*image.shape, 1)[:3]
        if image.shape != shape:
            image = nibabel.Nifti1Image(np.asanyarray(image.dataobj).reshape(shape), image.affine, image.header)
        check_spacing([float(size) for size in image.header.get_zooms()[:3]])
        stacked = image.header.get_dim_info()[2]
        axes = nibabel.io_orientation(image.affine)[:, 0]
        canonical = nibabel.as_closest_canonical(image)
        volume = np.asarray(canonical.dataobj, dtype=np.float32)
        zooms = tuple(float(size) for size in canonical.header.get_zooms()[:3])
    except (ImageError, MemoryError):
        raise
    except (OSError, EOFError, ValueError) as error:
        raise ImageError("truncated", "the file has fewer voxels than its header states") from error
    except Exception as error:
        raise ImageError("unreadable", f"the volume cannot be read ({type(error).__name__})") from error
    return _Volume(volume, zooms, None if stacked is None or np.isnan(axes[stacked]) else int(axes[stacked]))


def _check_background(finite: npt.NDArray[np.bool_]) -> None:
    """Refuse a volume with NaN or infinite voxels inside the head, that is not connected with the border of the volume.

    Raises:
        ImageError: not_finite.
    """
    regions, _ = require("scipy.ndimage").label(~finite)
    border = [regions.take(end, axis=axis) for axis in range(3) for end in (0, -1)]
    outside = np.unique(np.concatenate([side.ravel() for side in border]))
    inside = np.count_nonzero(~finite & ~np.isin(regions, outside[outside > 0]))
    if inside > NOT_FINITE_INSIDE * np.count_nonzero(finite):
        raise ImageError(
            "not_finite",
            f"{inside:,} voxels inside the head are NaN or infinite, more than {100 * NOT_FINITE_INSIDE:g} % of it",
        )


def _slices(
    grey: Grey, volume: _Volume, settings: ReadSettings, masked: npt.NDArray[np.bool_] | None = None
) -> Reading:
    slices: list[Slice] = []
    refused: list[Refusal] = []
    planes = (PLANES[volume.acquired],) if settings.volume_planes == "acquired" else settings.volume_planes
    for plane in planes:
        axis = PLANES.index(plane)
        first = axis * 100_000
        try:
            _check_plane(plane, volume, settings)
        except ImageError as error:
            if len(planes) == 1:
                raise
            refused.append(Refusal(first, error.reason, str(error)))
            continue
        row_spacing = volume.spacing[1] if plane == "axial" else volume.spacing[2]
        for number in _select_slices(grey, axis, settings):
            facts = ScanFacts(
                plane=plane,
                position=number * volume.spacing[axis],
                spacing=row_spacing,
                masked=None if masked is None else float(np.take(masked, number, axis=axis).mean()),
            )
            try:
                pixels = finish(_to_image(np.take(grey, number, axis=axis)), settings)
            except ImageError as error:
                refused.append(Refusal(first + number, error.reason, str(error)))
                continue
            slices.append(Slice(pixels, first + number, facts))
    return Reading(slices, refused)


def _check_plane(plane: Plane, volume: _Volume, settings: ReadSettings) -> None:
    """Refuse a plane whose slices are too small, or strips through a stack of thick slices.

    Raises:
        ImageError: too_many_pixels, too_small or thin_plane.
    """
    axes = [axis for axis in (2, 1, 0) if axis != PLANES.index(plane)]
    height, width = (volume.levels.shape[axis] for axis in axes)
    acquired = PLANES[volume.acquired]
    try:
        check_size(height, width, settings)
    except ImageError as error:
        raise ImageError(error.reason, f"{error}; they are {plane} slices of a stack of {acquired} ones") from error
    low, high = sorted(volume.spacing[axis] for axis in axes)
    if high > _STRIP * low:
        raise ImageError(
            "thin_plane",
            f"{plane} slices of this stack of {acquired} ones are strips of {width}x{height} pixels: "
            f"add {acquired} to ingest.volume_planes, or set it to acquired",
        )


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
