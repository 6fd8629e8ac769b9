"""Graphs of scans that their encoder did not see, brought into the space of the released encoder (DESIGN §6).

A cross-fitted encoder leaves a fold out, so its graphs of that fold look like those of a stranger's scan. Its axes are
its own: a similarity transform (Procrustes: Gower 1975) lays its gallery, which both encoders learned from and nothing
else, onto that of the released encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrcg.hashing import seed_of
from mrcg.reranker.graph_table import GraphTable

#: Scans that a transform is fitted on at most.
SAMPLE = 20_000

Vectors = npt.NDArray[np.float16]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Similarity:
    """x -> scale * (x - source) @ rotation + target."""

    scale: float
    rotation_dd: Floats
    source_d: Floats
    target_d: Floats

    def apply(self, vectors_nd: npt.NDArray[np.floating]) -> Vectors:
        """(n, d) vectors in the other space."""
        moved = self.scale * (vectors_nd.astype(np.float64) - self.source_d) @ self.rotation_dd + self.target_d
        return moved.astype(np.float16)


def fit_similarity(vectors_nd: npt.NDArray[np.floating], onto_nd: npt.NDArray[np.floating]) -> Similarity:
    """The rotation (or reflection), scale and shift that bring rows nearest to those of another space.

    Args:
        vectors_nd: (n, d) rows to be moved.
        onto_nd: (n, d) the same scans where they shall lie.
    """
    x, y = vectors_nd.astype(np.float64), onto_nd.astype(np.float64)
    source, target = x.mean(axis=0), y.mean(axis=0)
    x, y = x - source, y - target
    left, singular, right = np.linalg.svd(x.T @ y)
    spread = float(np.square(x).sum())
    # All scans in one place have no direction: they are shifted only.
    scale = float(singular.sum()) / spread if spread > 0 else 1.0
    return Similarity(scale, left @ right, source, target)


def cross_fitted(
    vectors_nd: Vectors, folds: Sequence[tuple[Vectors, GraphTable]], seed: int
) -> tuple[Vectors, GraphTable]:
    """The spaces of all encoders in one array, and the graphs of all folds with rows that point into it.

    Args:
        vectors_nd: (rows, d) embeddings of the released encoder; they stay in front.
        folds: embeddings (rows, d) of each fold's encoder, and the graphs of the scans it did not see.
        seed: of the run; draws the scans that a transform is fitted on.

    Returns:
        ((folds + 1) * rows, d) embeddings and the graphs.
    """
    rows = len(vectors_nd)
    spaces, tables = [vectors_nd], []
    for number, (space, table) in enumerate(folds, start=1):
        gallery = np.unique(table.neighbours_qn[table.neighbours_qn >= 0])
        draw = np.random.default_rng(seed_of(seed, "procrustes", number))
        chosen = np.sort(draw.permutation(gallery)[:SAMPLE])
        spaces.append(fit_similarity(space[chosen], vectors_nd[chosen]).apply(space))
        shift = number * rows
        pads = table.neighbours_qn < 0
        moved = np.where(pads, -1, table.neighbours_qn + shift)
        tables.append(GraphTable(table.queries + shift, moved, table.distances_qn, table.relevant_qn))
    graphs = GraphTable(
        np.concatenate([t.queries for t in tables]),
        np.concatenate([t.neighbours_qn for t in tables]),
        np.concatenate([t.distances_qn for t in tables]),
        np.concatenate([t.relevant_qn for t in tables]),
    )
    return np.concatenate(spaces), graphs
