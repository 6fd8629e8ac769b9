"""Node features and edges of query graphs, as dense batches (paper §III-C; docs/method.md#query-graph)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

#: Columns of the node features with a fixed width; all other features are as wide as the embedding.
_COLUMNS = {"distance": 2, "rank": 1}


@dataclass(frozen=True)
class GraphBatch:
    """Query graphs padded to n nodes: (b, n, f) node features, (b, n, n) edge weights, (b, n) mask, False for pads."""

    x_bnf: Tensor
    adjacency_bnn: Tensor
    mask_bn: Tensor


def query_graphs(
    queries_bd: Tensor, neighbours_bnd: Tensor, mask_bn: Tensor, features: Sequence[str] = ("difference",)
) -> GraphBatch:
    """Return the query graphs: nodes v_i = q - g_i by default, edges by the angle between g_i and g_j.

    Args:
        queries_bd: embeddings of the queries.
        neighbours_bnd: stored embeddings of their neighbours, in order of ANN rank.
        mask_bn: False for pads.
        features: names from ``reranker.features``; their columns are concatenated in this order.
    """
    neighbours = neighbours_bnd.float()
    x = node_features(queries_bd.float(), neighbours, mask_bn, features)
    edge_mask = mask_bn[:, :, None] & mask_bn[:, None, :]
    return GraphBatch(x, angular_adjacency(neighbours) * edge_mask, mask_bn)


def feature_widths(features: Sequence[str], embedding_dim: int) -> list[int]:
    """Return the number of columns of each node feature."""
    return [_COLUMNS.get(name, embedding_dim) for name in features]


def node_features(queries_bd: Tensor, neighbours_bnd: Tensor, mask_bn: Tensor, features: Sequence[str]) -> Tensor:
    """Return the (b, n, f) node features, 0 for pads; f is the sum of ``feature_widths``.

    - difference: q - g_i, the only feature in the paper (§III-C);
    - magnitude: |q - g_i|, for each dimension;
    - product: q * g_i, for each dimension;
    - distance: two columns, the squared L2 divided by its mean over the query's nodes (the distance relative to this
      graph) and log(1 + squared L2) (the absolute distance);
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
            # If all neighbours equal the query, the mean is 0; dividing by 1 gives relative distances of 0, not NaN.
            relative = squared / torch.where(mean > 0, mean, 1.0)
            return torch.stack((relative, squared.log1p()), dim=-1)
        case "rank":
            ranks = torch.arange(mask_bn.shape[1], device=mask_bn.device)
            return (1 / torch.log2(ranks + 2.0)).expand(mask_bn.shape)[..., None]
    raise AssertionError(f"no node feature {name}")


def angular_adjacency(g_bnd: Tensor) -> Tensor:
    """a_ij = 1 - arccos(cos(g_i, g_j)) / π for i ≠ j, a_ii = 0: (b, n, d) -> (b, n, n) in [0, 1].

    Equal directions give 1, opposite ones 0. A zero vector has cosine 0 with every vector, which gives 1/2.
    """
    unit = functional.normalize(g_bnd, dim=-1)
    cosine = (unit @ unit.transpose(1, 2)).clamp(-1.0, 1.0)
    # The matrix product may not be symmetric to the last bit, but the graph must be.
    cosine = (cosine + cosine.transpose(1, 2)) / 2
    adjacency = 1 - torch.arccos(cosine) / math.pi
    diagonal = torch.eye(g_bnd.shape[1], dtype=torch.bool, device=g_bnd.device)
    return adjacency.masked_fill(diagonal, 0.0)


def drop_edge(adjacency_bnn: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Remove each undirected edge with probability ``rate``, both directions together (DropEdge)."""
    keep = torch.rand(adjacency_bnn.shape, generator=generator, device=adjacency_bnn.device) >= rate
    upper = torch.triu(keep, diagonal=1)
    return adjacency_bnn * (upper | upper.transpose(1, 2))
