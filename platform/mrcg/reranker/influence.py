"""By how much each edge of a query graph moved the score of a node."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Influences:
    """Edges of a query graph and what they did for some of its nodes.

    (n, n) weights; (nodes, n) by how much the edge to each other node raised the score.
    """

    weights_nn: npt.NDArray[np.float32]
    moved_kn: npt.NDArray[np.float32]

    def strongest(self, number: int, count: int) -> list[int]:
        """The neighbours whose edges moved a node's score most, ties by rank; without those that did not."""
        moved = np.abs(self.moved_kn[number])
        strongest: list[int] = np.argsort(-moved, kind="stable")[:count].tolist()
        return [one for one in strongest if moved[one] > 0]
