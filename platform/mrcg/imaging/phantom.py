"""Phantom brain slices: synthetic scans for demos and tests that must not show real ones.

The four classes differ like the real ones: a glioma lies inside the tissue, is irregular and has a bright rim; a
meningioma lies at the skull, round and uniform; a pituitary tumour is small and low on the midline; the fourth class
has no tumour. Patients differ in head shape, ventricles and contrast; slices of one patient differ in height, lesion
size and noise. The lesion covers a few per cent of the pixels and everything else varies more, so a network has to
learn where to look.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrcg.hashing import seed_of
from mrcg.imaging.lesion import LesionMask
from mrcg.imaging.slices import Grey

CLASSES = ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor")
SIDE = 128
SLICES_PER_PATIENT = 4
#: All phantoms are slices of this plane.
SLICE_PLANE = "axial"

Plane = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Phantom:
    """One slice with its class, its patient number within the class and its number within the patient.

    ``lesion`` is True where the lesion was drawn.
    """

    label: str
    patient: int
    slice_number: int
    pixels: Grey
    lesion: LesionMask


def phantoms(images: int, seed: int, classes: Sequence[str] = CLASSES) -> Iterator[Phantom]:
    """Yield ``images`` slices, spread evenly over the classes, four per patient; equal seeds give equal slices."""
    per_class = [len(range(c, images, len(classes))) for c in range(len(classes))]
    for label, count in zip(classes, per_class, strict=True):
        for number in range(count):
            patient, slice_number = divmod(number, SLICES_PER_PATIENT)
            yield Phantom(label, patient, slice_number, *draw_slice(label, seed, patient, slice_number))


def draw_slice(label: str, seed: int, patient: int, slice_number: int) -> tuple[Grey, LesionMask]:
    """Draw one slice: (128, 128) grey levels, and where its lesion is."""
    patient_rng = np.random.default_rng(seed_of(seed, label, patient))
    slice_rng = np.random.default_rng(seed_of(seed, label, patient, slice_number))
    y, x = _rotated_grid(
        patient_rng.uniform(-0.2, 0.2) + slice_rng.uniform(-0.05, 0.05), patient_rng.uniform(-0.06, 0.06, size=2)
    )
    height = patient_rng.uniform(0.74, 0.88) * slice_rng.uniform(0.97, 1.0)
    width = height * patient_rng.uniform(0.74, 0.88)
    tissue, bone = patient_rng.uniform(0.35, 0.6), patient_rng.uniform(0.6, 1.0)
    radius = np.hypot(y / height, x / width)
    angle = np.arctan2(y / height, x / width)

    image = np.where(radius < 1.0, bone, 0.02)
    image = np.where(radius < 0.93, 0.08, image)
    folds = 0.08 * np.sin(angle * patient_rng.integers(14, 24) + patient_rng.uniform(0, 6)) * (radius > 0.7)
    inside = radius < 0.88 + 0.2 * folds
    image = np.where(
        inside, tissue * (1 + folds + 0.25 * _smooth_noise(patient_rng, 10) + 0.2 * _smooth_noise(slice_rng, 16)), image
    )
    ventricle = patient_rng.uniform(0.08, 0.16) * slice_rng.uniform(0.8, 1.2)
    for side in (-1.0, 1.0):
        image = np.where(
            _ellipse(y + 0.05, x - side * 0.13, ventricle * 2.0, ventricle * 0.8) < 1, tissue * 0.35, image
        )
    image = _add_distractors(image, y, x, tissue, patient_rng)
    image, lesion = _add_lesion(image, label, (y, x), (height, width), tissue, patient_rng, slice_rng)

    bias = 1 + 0.25 * (patient_rng.uniform(-1, 1) * y + patient_rng.uniform(-1, 1) * x)
    image = image * bias * patient_rng.uniform(0.8, 1.2) + slice_rng.normal(
        0, patient_rng.uniform(0.02, 0.05), image.shape
    )
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8), lesion


def _rotated_grid(angle: float, shift: npt.NDArray[np.float64]) -> tuple[Plane, Plane]:
    axis = np.linspace(-1, 1, SIDE)
    y, x = np.meshgrid(axis - shift[0], axis - shift[1], indexing="ij")
    return y * np.cos(angle) - x * np.sin(angle), y * np.sin(angle) + x * np.cos(angle)


def _ellipse(y: Plane, x: Plane, height: float, width: float) -> Plane:
    distance: Plane = np.hypot(y / height, x / width)
    return distance


def _smooth_noise(rng: np.random.Generator, cells: int) -> Plane:
    """Return noise between -1 and 1, interpolated linearly from a random grid of ``cells`` x ``cells`` cells."""
    grid = rng.uniform(-1, 1, (cells + 1, cells + 1))
    position = np.linspace(0, cells - 1e-9, SIDE)
    low = position.astype(int)
    weight = position - low
    rows = grid[low] * (1 - weight)[:, None] + grid[low + 1] * weight[:, None]
    noise: Plane = rows[:, low] * (1 - weight) + rows[:, low + 1] * weight
    return noise


def _add_distractors(image: Plane, y: Plane, x: Plane, tissue: float, rng: np.random.Generator) -> Plane:
    """Add bright vessels to slices of every class, so that a bright spot alone does not identify a class."""
    for _ in range(rng.integers(2, 6)):
        angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.6)
        spot = _ellipse(y - reach * np.sin(angle), x - reach * np.cos(angle) * 0.8, *rng.uniform(0.02, 0.05, 2))
        image = np.where(spot < 1, tissue * rng.uniform(1.2, 1.7), image)
    return image


def _add_lesion(
    image: Plane,
    label: str,
    grid: tuple[Plane, Plane],
    head: tuple[float, float],
    tissue: float,
    patient_rng: np.random.Generator,
    slice_rng: np.random.Generator,
) -> tuple[Plane, LesionMask]:
    """Return the image with the lesion of its class, and where the lesion is."""
    (y, x), (height, width) = grid, head
    angle = patient_rng.uniform(0, 2 * np.pi)
    growth = slice_rng.uniform(0.85, 1.15)
    bright = tissue * patient_rng.uniform(1.35, 1.8)
    if label == "glioma_tumor":
        reach, size = patient_rng.uniform(0.3, 0.5), patient_rng.uniform(0.15, 0.23) * growth
        cy, cx = reach * np.sin(angle) * height, reach * np.cos(angle) * width
        rough = 1 + 0.3 * _smooth_noise(patient_rng, 6)
        blob = _ellipse(y - cy, x - cx, size, size * patient_rng.uniform(0.8, 1.2)) / rough
        image = np.where(blob < 1, bright, image)
        return np.where(blob < 0.65, tissue * patient_rng.uniform(0.4, 0.75), image), blob < 1
    if label == "meningioma_tumor":
        size = patient_rng.uniform(0.12, 0.19) * growth
        cy, cx = 0.8 * np.sin(angle) * height, 0.8 * np.cos(angle) * width
        lesion = _ellipse(y - cy, x - cx, size, size) < 1
        return np.where(lesion, bright, image), lesion
    if label == "pituitary_tumor":
        size = patient_rng.uniform(0.08, 0.13) * growth
        cy, cx = height * patient_rng.uniform(0.45, 0.55), patient_rng.uniform(-0.03, 0.03)
        lesion = _ellipse(y - cy, x - cx, size, size * 1.2) < 1
        return np.where(lesion, bright, image), lesion
    assert label == "no_tumor", label
    return image, np.zeros(image.shape, dtype=bool)
