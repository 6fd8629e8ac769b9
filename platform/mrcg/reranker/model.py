"""The reranker: two graph convolutions with linear skips, then a score for each node (DESIGN §3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn import DenseGCNConv

from mrcg.graph.adjacency import GraphBatch, drop_edge
from mrcg.reranker.spec import RerankerSpec


class SkipConvolution(nn.Module):
    """X' = ReLU( D̂^-1/2 (A+I) D̂^-1/2 X W + F(X) ), F a linear skip (paper eq. 7)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = DenseGCNConv(inputs, outputs)
        self.skip = nn.Linear(inputs, outputs)

    def forward(self, x_bnd: Tensor, adjacency_bnn: Tensor, mask_bn: Tensor) -> Tensor:
        """(b, n, inputs) -> (b, n, outputs); nodes that do not exist stay 0."""
        convolved = self.convolution(x_bnd, adjacency_bnn, mask_bn)
        return functional.relu(convolved + self.skip(x_bnd)) * mask_bn[..., None]


class Reranker(nn.Module):
    """Scores the nodes of query graphs. It sees no labels of the gallery."""

    def __init__(self, spec: RerankerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.first = SkipConvolution(spec.embedding_dim, spec.hidden)
        self.second = SkipConvolution(spec.hidden, spec.hidden)
        self.dropout = nn.Dropout(spec.dropout)
        self.score = nn.Linear(spec.hidden, 1)

    def forward(self, graph: GraphBatch, generator: torch.Generator | None = None) -> Tensor:
        """(b, n) logits; ``generator`` draws the dropped edges in training."""
        adjacency = graph.adjacency_bnn
        if self.training and generator is not None:
            adjacency = drop_edge(adjacency, self.spec.drop_edge, generator)
        x = self.dropout(self.first(graph.x_bnd, adjacency, graph.mask_bn))
        x = self.dropout(self.second(x, adjacency, graph.mask_bn))
        logits: Tensor = self.score(x)[..., 0]
        return logits


def focal_loss(logits_bn: Tensor, targets_bn: Tensor, mask_bn: Tensor, alpha: float, gamma: float) -> Tensor:
    """Mean over existing nodes of -α_t (1 - p_t)^γ log p_t (paper eq. 9); 0 where there are none."""
    targets = targets_bn.to(logits_bn.dtype)
    cross_entropy = functional.binary_cross_entropy_with_logits(logits_bn, targets, reduction="none")
    alpha_t = alpha * targets + (1 - alpha) * (1 - targets)
    # 1 - p_t = 1 - exp(-cross entropy), without a second sigmoid.
    missed = -torch.expm1(-cross_entropy)
    losses = alpha_t * missed**gamma * cross_entropy * mask_bn
    return losses.sum() / mask_bn.sum().clamp_min(1)
