"""Map graphs of scans that a cross-fitted encoder did not see into the embedding space of the released encoder.

A cross-fitted encoder is trained without one fold, so its graphs of that fold look like graphs of new scans. Its
embedding space has different axes. A similarity transform (Procrustes analysis, Gower 1975) aligns it with the space
of the released encoder. It is fitted only on the fold's gallery: scans that both encoders were trained on.
See docs/design.md#training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrcg.arrays import Fp16Vectors
from mrcg.hashing import seed_of
from mrcg.reranker.graph_table import GraphTable

#: Maximum number of scans that a transform is fitted on.
MAX_FIT_SCANS = 20_000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SimilarityTransform:
    """The map x -> scale * (x - source) @ rotation + target; ``rotation_dd`` may include a reflection."""

    scale: float
    rotation_dd: Floats
    source_d: Floats
    target_d: Floats

    def apply(self, vectors_nd: npt.NDArray[np.floating]) -> Fp16Vectors:
        """Return (n, d) vectors mapped into the target space, as float16."""
        mapped = self.scale * (vectors_nd.astype(np.float64) - self.source_d) @ self.rotation_dd + self.target_d
        return mapped.astype(np.float16)


def fit_similarity(vectors_nd: npt.NDArray[np.floating], targets_nd: npt.NDArray[np.floating]) -> SimilarityTransform:
    """Return the rotation (or reflection), scale and shift that map rows to their targets with least squared error.

    Args:
        vectors_nd: (n, d) embeddings to map.
        targets_nd: (n, d) embeddings of the same scans in the target space.
    """
    x, y = vectors_nd.astype(np.float64), targets_nd.astype(np.float64)
    source, target = x.mean(axis=0), y.mean(axis=0)
    x, y = x - source, y - target
    # SciPy's orthogonal_procrustes is these lines, with other last bits: rerankers are the same as before without it.
    left, singular, right = np.linalg.svd(x.T @ y)
    spread = float(np.square(x).sum())
    # Without spread, all vectors are equal and define no scale: they are only shifted.
    scale = float(singular.sum()) / spread if spread > 0 else 1.0
    return SimilarityTransform(scale, left @ right, source, target)


def cross_fitted(
    vectors_nd: Fp16Vectors, folds: Sequence[tuple[Fp16Vectors, GraphTable]], seed: int
) -> tuple[Fp16Vectors, GraphTable]:
    """Return the embeddings of all encoders in one array, and the graphs of all folds with rows into that array.

    Args:
        vectors_nd: (rows, d) embeddings of the released encoder; they come first, unchanged.
        folds: for each fold, the (rows, d) embeddings of its encoder and the graphs of the scans it did not see.
        seed: seed of the run; it draws the scans that each transform is fitted on.

    Returns:
        ((folds + 1) * rows, d) embeddings, and the graphs.
    """
    rows = len(vectors_nd)
    spaces, tables = [vectors_nd], []
    for number, (space, table) in enumerate(folds, start=1):
        gallery = np.unique(table.neighbours_qn[table.neighbours_qn >= 0])
        rng = np.random.default_rng(seed_of(seed, "procrustes", number))
        sample = np.sort(rng.permutation(gallery)[:MAX_FIT_SCANS])
        spaces.append(fit_similarity(space[sample], vectors_nd[sample]).apply(space))
        offset = number * rows
        pads = table.neighbours_qn < 0
        neighbours = np.where(pads, -1, table.neighbours_qn + offset)
        tables.append(GraphTable(table.queries + offset, neighbours, table.distances_qn, table.relevant_qn))
    graphs = GraphTable(
        np.concatenate([t.queries for t in tables]),
        np.concatenate([t.neighbours_qn for t in tables]),
        np.concatenate([t.distances_qn for t in tables]),
        np.concatenate([t.relevant_qn for t in tables]),
    )
    return np.concatenate(spaces), graphs
