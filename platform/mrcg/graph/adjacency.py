"""Node features and edges of query graphs, batched and dense (paper §III-C, DESIGN §3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class GraphBatch:
    """Query graphs of one size: (b, n, d) node features, (b, n, n) edge weights, (b, n) which nodes exist."""

    x_bnd: Tensor
    adjacency_bnn: Tensor
    mask_bn: Tensor


def query_graphs(queries_bd: Tensor, neighbours_bnd: Tensor, mask_bn: Tensor) -> GraphBatch:
    """Graphs of queries and their neighbours: v_i = q - g_i, edges by the angle between g_i and g_j.

    Args:
        queries_bd: embeddings of the queries.
        neighbours_bnd: stored embeddings of their neighbours, ranks in order.
        mask_bn: False where a rank is a pad.
    """
    neighbours = neighbours_bnd.float()
    x = (queries_bd.float()[:, None, :] - neighbours) * mask_bn[..., None]
    both = mask_bn[:, :, None] & mask_bn[:, None, :]
    return GraphBatch(x, angular_adjacency(neighbours) * both, mask_bn)


def angular_adjacency(g_bnd: Tensor) -> Tensor:
    """a_ij = 1 - arccos(cos(g_i, g_j)) / π for i ≠ j, a_ii = 0: (b, n, d) -> (b, n, n) in [0, 1].

    Two equal directions give 1, two opposite ones 0. A zero vector has cosine 0 with all, so 1/2.
    """
    unit = functional.normalize(g_bnd, dim=-1)
    cosine = (unit @ unit.transpose(1, 2)).clamp(-1.0, 1.0)
    # Matrix products need not be symmetric to the last bit; the graph has to be.
    cosine = (cosine + cosine.transpose(1, 2)) / 2
    adjacency = 1 - torch.arccos(cosine) / math.pi
    diagonal = torch.eye(g_bnd.shape[1], dtype=torch.bool, device=g_bnd.device)
    return adjacency.masked_fill(diagonal, 0.0)


def drop_edge(adjacency_bnn: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Remove each undirected edge with probability ``rate``, both directions together (DESIGN §3)."""
    keep = torch.rand(adjacency_bnn.shape, generator=generator, device=adjacency_bnn.device) >= rate
    upper = torch.triu(keep, diagonal=1)
    return adjacency_bnn * (upper | upper.transpose(1, 2))
