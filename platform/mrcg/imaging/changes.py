"""Small changes that a scan undergoes between two systems, to test whether it is still found."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from mrcg.imaging.slices import Grey

#: Standard deviation of the noise, in grey levels.
NOISE = 8.0
_Change = Callable[[Grey, np.random.Generator], Grey]


def rotate(grey: Grey, rng: np.random.Generator) -> Grey:
    """Turn by 3° to either side; corners become black."""
    turned = Image.fromarray(grey).rotate(float(rng.choice((-3.0, 3.0))), resample=Image.Resampling.BILINEAR)
    return np.asarray(turned)


def compress(grey: Grey, rng: np.random.Generator) -> Grey:
    """Save as JPEG with quality 60."""
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "JPEG", quality=60)
    return np.asarray(Image.open(buffer).convert("L"))


def relight(grey: Grey, rng: np.random.Generator) -> Grey:
    """Change the brightness by 20 % up or down, then the contrast by 20 % up or down."""
    bright = grey.astype(np.float64) * rng.choice((0.8, 1.2))
    mean = bright.mean()
    changed: Grey = np.clip((bright - mean) * rng.choice((0.8, 1.2)) + mean, 0, 255).round().astype(np.uint8)
    return changed


def crop(grey: Grey, rng: np.random.Generator) -> Grey:
    """Cut off 5 % of the height and of the width, shared by chance between the two sides."""
    height, width = grey.shape
    rows, columns = round(0.05 * height), round(0.05 * width)
    top, left = int(rng.integers(0, rows + 1)), int(rng.integers(0, columns + 1))
    return grey[top : top + height - rows, left : left + width - columns]


def add_noise(grey: Grey, rng: np.random.Generator) -> Grey:
    """Add normal noise of ``NOISE`` grey levels."""
    return np.clip(grey + rng.normal(0, NOISE, grey.shape), 0, 255).round().astype(np.uint8)


def halve(grey: Grey, rng: np.random.Generator) -> Grey:
    """Halve the resolution."""
    height, width = grey.shape
    small = Image.fromarray(grey).resize((max(1, width // 2), max(1, height // 2)), Image.Resampling.BILINEAR)
    return np.asarray(small)


#: The changes by name. Each takes grey levels and a random generator and returns new grey levels.
CHANGES: Mapping[str, _Change] = {
    "rotated by 3°": rotate,
    "JPEG, quality 60": compress,
    "brightness and contrast ± 20 %": relight,
    "cropped by 5 %": crop,
    "noise": add_noise,
    "half the resolution": halve,
}
