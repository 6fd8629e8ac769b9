"""Embeddings on a plane, to be looked at: t-SNE of a few scans, the same points for the same vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mrcg.errors import require
from mrcg.hashing import seed_of

#: Principal components that t-SNE is given: the noise of the others costs time and clarity.
COMPONENTS = 50
PERPLEXITY = 30.0
#: With fewer points there are no neighbourhoods to keep.
FEWEST = 8

Plane = npt.NDArray[np.float32]


def plane(vectors_nd: npt.NDArray[np.floating]) -> Plane | None:
    """(n, 2) t-SNE coordinates of (n, d) embeddings (van der Maaten and Hinton 2008); None for fewer than 8.

    Started from the first two principal components, so that far apart stays roughly far apart.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    if len(vectors_nd) < FEWEST:
        return None
    manifold, threads = require("sklearn.manifold"), require("threadpoolctl")
    # One thread: the order of a sum over several would change with the machine, and t-SNE magnifies it.
    with threads.threadpool_limits(1):
        parts = _principal(vectors_nd.astype(np.float64))
        start = parts[:, :2] / max(float(parts[:, 0].std()), 1e-12) * 1e-4
        tsne = manifold.TSNE(
            perplexity=min(PERPLEXITY, (len(parts) - 1) / 3),
            init=start.astype(np.float32),
            random_state=seed_of(0, "map") % 2**32,
            n_jobs=1,
        )
        points: Plane = tsne.fit_transform(parts.astype(np.float32))
    return points


def _principal(vectors_nd: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(n, min(n, d, 50)) principal components, at least two, each signed so that its largest weight is positive."""
    centred = vectors_nd - vectors_nd.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:COMPONENTS]
    peaks = np.abs(axes).argmax(axis=1)
    axes = axes * np.sign(axes[np.arange(len(axes)), peaks])[:, None]
    parts: npt.NDArray[np.float64] = centred @ axes.T
    return parts if parts.shape[1] >= 2 else np.pad(parts, ((0, 0), (0, 2 - parts.shape[1])))
