"""Node features and edges of query graphs, batched and dense (paper §III-C, DESIGN §3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

#: Node features of a fixed width, in columns; all others are as wide as the embedding.
_COLUMNS = {"distance": 2, "rank": 1}


@dataclass(frozen=True)
class GraphBatch:
    """Query graphs of one size: (b, n, f) node features, (b, n, n) edge weights, (b, n) which nodes exist."""

    x_bnf: Tensor
    adjacency_bnn: Tensor
    mask_bn: Tensor


def query_graphs(
    queries_bd: Tensor, neighbours_bnd: Tensor, mask_bn: Tensor, features: Sequence[str] = ("difference",)
) -> GraphBatch:
    """Graphs of queries and their neighbours: v_i = q - g_i by default, edges by the angle between g_i and g_j.

    Args:
        queries_bd: embeddings of the queries.
        neighbours_bnd: stored embeddings of their neighbours, ranks in order.
        mask_bn: False where a rank is a pad.
        features: names out of ``reranker.features``; their columns stand side by side in this order.
    """
    neighbours = neighbours_bnd.float()
    x = node_features(queries_bd.float(), neighbours, mask_bn, features)
    both = mask_bn[:, :, None] & mask_bn[:, None, :]
    return GraphBatch(x, angular_adjacency(neighbours) * both, mask_bn)


def feature_widths(features: Sequence[str], embedding_dim: int) -> list[int]:
    """Columns that each node feature takes."""
    return [_COLUMNS.get(name, embedding_dim) for name in features]


def node_features(queries_bd: Tensor, neighbours_bnd: Tensor, mask_bn: Tensor, features: Sequence[str]) -> Tensor:
    """(b, n, f) features of the nodes, 0 for pads; f is the sum of ``feature_widths``.

    The paper's is the difference alone (§III-C). The others are

    - magnitude: |q - g_i|, each dimension by itself;
    - product: q * g_i, each dimension by itself;
    - distance: the squared L2 over its mean among the query's nodes, and log(1 + squared L2): near and far
      within this graph, and near and far at all;
    - rank: 1 / log2(i + 2) for ANN rank i = 0, 1, ….
    """
    difference = queries_bd[:, None, :] - neighbours_bnd
    columns = [_feature(name, queries_bd, neighbours_bnd, difference, mask_bn) for name in features]
    return torch.cat(columns, dim=-1) * mask_bn[..., None]


def _feature(name: str, queries_bd: Tensor, neighbours_bnd: Tensor, difference_bnd: Tensor, mask_bn: Tensor) -> Tensor:
    match name:
        case "difference":
            return difference_bnd
        case "magnitude":
            return difference_bnd.abs()
        case "product":
            return queries_bd[:, None, :] * neighbours_bnd
        case "distance":
            squared = difference_bnd.square().sum(-1) * mask_bn
            mean = squared.sum(-1, keepdim=True) / mask_bn.sum(-1, keepdim=True).clamp_min(1)
            # Where all neighbours equal the query every distance is 0, and 0 of the mean.
            relative = squared / torch.where(mean > 0, mean, 1.0)
            return torch.stack((relative, squared.log1p()), dim=-1)
        case "rank":
            ranks = torch.arange(mask_bn.shape[1], device=mask_bn.device)
            return (1 / torch.log2(ranks + 2.0)).expand(mask_bn.shape)[..., None]
    raise AssertionError(f"no node feature {name}")


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
