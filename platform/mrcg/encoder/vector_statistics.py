"""Principal components and spread of vectors, for the parts of an embedding that are fitted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def principal_components(vectors_nd: npt.NDArray[np.floating], count: int) -> tuple[Floats, Floats, Floats]:
    """Return the mean (d,), the largest variances (c,) and their axes (d, c), in decreasing order.

    Equal input gives equal bytes: the sign of an axis is arbitrary, so its largest entry is made positive.

    Args:
        vectors_nd: (n, d) vectors; at least one.
        count: c, at most; there are no more than n or d of them.
    """
    x = vectors_nd.astype(np.float64)
    mean = x.mean(axis=0)
    x = x - mean
    variances, axes = np.linalg.eigh(x.T @ x / len(x))
    kept = min(count, *x.shape)
    variances, axes = variances[::-1][:kept], axes[:, ::-1][:, :kept]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], 0)
    return mean, np.clip(variances, 0, None), axes * np.where(largest < 0, -1.0, 1.0)


def spread_of(vectors_nd: npt.NDArray[np.floating]) -> float:
    """Return the root of the mean squared distance of vectors from their mean; 0 without vectors."""
    x = vectors_nd.astype(np.float64)
    return float(np.sqrt(np.square(x - x.mean(axis=0)).sum(axis=1).mean())) if len(x) else 0.0
