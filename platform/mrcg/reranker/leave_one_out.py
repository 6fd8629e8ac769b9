"""Edges of a query graph, and the scores of its nodes with each node left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class LeaveOneOut:
    """Edge weights of a query graph, and scores of smaller graphs.

    Attributes:
        weights_nn: (n, n) edge weights.
        scores_nn: (n, n) scores of all nodes in a graph without the node of the row; its own entry means nothing.
    """

    weights_nn: npt.NDArray[np.float32]
    scores_nn: npt.NDArray[np.float32]
