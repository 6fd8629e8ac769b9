"""Project embeddings to two dimensions with t-SNE; equal vectors give equal points."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mrcg.errors import require
from mrcg.hashing import seed_of

#: Number of principal components passed to t-SNE: the others add noise and computing time.
COMPONENTS = 50
PERPLEXITY = 30.0
#: Minimum number of points: fewer have no neighbourhoods to preserve.
MIN_POINTS = 8

Plane = npt.NDArray[np.float32]


def project_to_plane(vectors_nd: npt.NDArray[np.floating]) -> Plane | None:
    """Return (n, 2) t-SNE coordinates of (n, d) embeddings (van der Maaten and Hinton 2008); None for fewer than 8.

    The first two principal components are the initial coordinates, so large distances stay roughly large.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    if len(vectors_nd) < MIN_POINTS:
        return None
    manifold, threads = require("sklearn.manifold"), require("threadpoolctl")
    # With several threads the order of sums would depend on the machine, and t-SNE amplifies the difference.
    with threads.threadpool_limits(1):
        components = _principal(vectors_nd.astype(np.float64))
        start = components[:, :2] / max(float(components[:, 0].std()), 1e-12) * 1e-4
        tsne = manifold.TSNE(
            perplexity=min(PERPLEXITY, (len(components) - 1) / 3),
            init=start.astype(np.float32),
            random_state=seed_of(0, "map") % 2**32,
            n_jobs=1,
        )
        points: Plane = tsne.fit_transform(components.astype(np.float32))
    return points


def _principal(vectors_nd: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return (n, min(n, d, 50)) principal components, at least two; the largest weight of each is positive.

    t-SNE amplifies last bits, and those of scikit-learn's PCA differ: with these lines a report has the map it had.
    """
    centred = vectors_nd - vectors_nd.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:COMPONENTS]
    peaks = np.abs(axes).argmax(axis=1)
    axes = axes * np.sign(axes[np.arange(len(axes)), peaks])[:, None]
    components: npt.NDArray[np.float64] = centred @ axes.T
    return components if components.shape[1] >= 2 else np.pad(components, ((0, 0), (0, 2 - components.shape[1])))
