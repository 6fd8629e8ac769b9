"""How much each edge of a query graph changes the score of a node."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Influences:
    """Edge weights of a query graph, and how much each edge changes the scores of k of its nodes.

    Attributes:
        weights_nn: (n, n) edge weights.
        changes_kn: (k, n) score of each of the k nodes minus its score without the edge to each node of the graph.
    """

    weights_nn: npt.NDArray[np.float32]
    changes_kn: npt.NDArray[np.float32]

    def strongest(self, number: int, count: int) -> list[int]:
        """Return up to ``count`` nodes whose edges change the score of one of the k nodes most, strongest first.

        Ties keep the ANN order. Nodes whose edges change nothing are left out.

        Args:
            number: position of the node in ``changes_kn``.
            count: maximum number of nodes to return.
        """
        changes = np.abs(self.changes_kn[number])
        strongest: list[int] = np.argsort(-changes, kind="stable")[:count].tolist()
        return [node for node in strongest if changes[node] > 0]
