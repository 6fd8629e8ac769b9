"""Graph layers of the reranker and of its baselines, dense and batched: a query graph is complete (DESIGN §3).

All take (b, n, inputs) node features, the (b, n, n) symmetric edge weights with an empty diagonal that DropEdge left,
and (b, n) which nodes exist; they end in their activation, and nodes that do not exist stay 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn import DenseGATConv, DenseGCNConv, DenseSAGEConv

from mrcg.reranker.graph_features import GraphBatch


class SkipConvolution(nn.Module):
    """MRCG: X' = ReLU( D̂^-1/2 (A+I) D̂^-1/2 X W + F(X) ), F a linear skip (paper eq. 7)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = DenseGCNConv(inputs, outputs)
        self.skip = nn.Linear(inputs, outputs)

    def forward(self, x_bnf: Tensor, adjacency_bnn: Tensor, mask_bn: Tensor) -> Tensor:
        """(b, n, inputs) -> (b, n, outputs)."""
        convolved = self.convolution(x_bnf, adjacency_bnn)
        return functional.relu(convolved + self.skip(x_bnf)) * mask_bn[..., None]


class GCNLayer(nn.Module):
    """GCN: X' = ReLU( D̂^-1/2 (A+I) D̂^-1/2 X W ) (Kipf and Welling 2017). PyG's layer sets the diagonal to 1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = DenseGCNConv(inputs, outputs)

    def forward(self, x_bnf: Tensor, adjacency_bnn: Tensor, mask_bn: Tensor) -> Tensor:
        """(b, n, inputs) -> (b, n, outputs)."""
        return functional.relu(self.convolution(x_bnf, adjacency_bnn)) * mask_bn[..., None]


class ChebyshevLayer(nn.Module):
    """ChebNet: X' = ReLU( Σ_k T_k(L̂) X W_k ), k = 0, 1, 2 (Defferrard et al. 2016).

    The paper says "second order, K = 2": the polynomials up to T_2, which PyG calls K = 3 (its K counts them). L is the
    symmetric normalised Laplacian I - D^-1/2 A D^-1/2 and its largest eigenvalue is taken as 2, the bound, so
    L̂ = L - I = -D^-1/2 A D^-1/2. The row of a node without edges is 0 in L̂, as in PyG.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        # The three W_k side by side, (3 outputs, inputs).
        self.weights = nn.Linear(inputs, 3 * outputs, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))
        for weight in self.weights.weight.data.chunk(3):
            nn.init.xavier_uniform_(weight)

    def forward(self, x_bnf: Tensor, adjacency_bnn: Tensor, mask_bn: Tensor) -> Tensor:
        """(b, n, inputs) -> (b, n, outputs)."""
        laplacian = -normalised_adjacency(adjacency_bnn)
        # T_0 = X, T_1 = L̂X, T_2 = 2L̂²X - X. Multiplied by W_k first: outputs are fewer than inputs.
        zeroth, first, second = self.weights(x_bnf).chunk(3, dim=-1)
        convolved = zeroth - second + laplacian @ (first + 2 * (laplacian @ second))
        return functional.relu(convolved + self.bias) * mask_bn[..., None]


class SAGELayer(nn.Module):
    """GraphSAGE: X' = ReLU( W_1 x_i + W_2 mean of the neighbours' x_j ) (Hamilton et al. 2017).

    Neighbours are the edges that DropEdge leaves; their weights do not count.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = DenseSAGEConv(inputs, outputs)

    def forward(self, x_bnf: Tensor, adjacency_bnn: Tensor, mask_bn: Tensor) -> Tensor:
        """(b, n, inputs) -> (b, n, outputs)."""
        edges = (adjacency_bnn > 0).to(x_bnf.dtype)
        return functional.relu(self.convolution(x_bnf, edges)) * mask_bn[..., None]


class AttentionLayer(nn.Module):
    """GAT with a linear skip: X' = ELU( heads side by side or averaged + F(X) ) (Veličković et al. 2018).

    A node attends to itself and along the edges that DropEdge leaves; their weights do not count. Each head is
    ``outputs`` wide, as in the GAT paper's inductive network.
    """

    def __init__(self, inputs: int, outputs: int, heads: int, average: bool = False) -> None:
        super().__init__()
        self.convolution = DenseGATConv(inputs, outputs, heads, concat=not average)
        self.skip = nn.Linear(inputs, outputs if average else heads * outputs)

    def forward(self, x_bnf: Tensor, adjacency_bnn: Tensor, mask_bn: Tensor) -> Tensor:
        """(b, n, inputs) -> (b, n, heads * outputs), or (b, n, outputs) where heads are averaged."""
        attended = self.convolution(x_bnf, adjacency_bnn)
        return functional.elu(attended + self.skip(x_bnf)) * mask_bn[..., None]


class FeatureScale(nn.Module):
    """A learned shift and scale of each column of the node features: (x - shift) * scale.

    Args:
        widths: columns of each named feature, in order.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = list(widths)
        self.shift_f = nn.Parameter(torch.zeros(sum(widths)))
        self.scale_f = nn.Parameter(torch.ones(sum(widths)))

    def forward(self, x_bnf: Tensor, mask_bn: Tensor) -> Tensor:
        """(b, n, f) -> (b, n, f); pads stay 0."""
        return (x_bnf - self.shift_f) * self.scale_f * mask_bn[..., None]

    @torch.no_grad()
    def fit(self, graphs: GraphBatch) -> None:
        """Start where each column has mean 0 and standard deviation 1 over the nodes of these graphs."""
        nodes_mf = graphs.x_bnf[graphs.mask_bn].double()
        if not len(nodes_mf):
            return
        mean, deviation = nodes_mf.mean(dim=0), nodes_mf.std(dim=0, correction=0)
        # What is left of a constant column is rounding.
        deviation = torch.where(deviation > 1e-6 * mean.abs(), deviation, 0.0)
        # A column that hardly moves in these graphs may move in others: it is not blown up by more than a hundred
        # times what the liveliest column of the same feature is.
        floor = torch.cat([part.max().expand_as(part) / 100 for part in deviation.split(self.widths)])
        deviation = torch.maximum(deviation, floor)
        self.shift_f.copy_(mean)
        self.scale_f.copy_(1 / torch.where(deviation > 0, deviation, 1.0))


def normalised_adjacency(adjacency_bnn: Tensor) -> Tensor:
    """D^-1/2 A D^-1/2, D the sums of rows; 0 in the rows and columns of nodes without edges: (b, n, n)."""
    degree_bn = adjacency_bnn.sum(-1)
    root_bn = torch.where(degree_bn > 0, degree_bn, 1.0).rsqrt()
    return root_bn[:, :, None] * adjacency_bnn * root_bn[:, None, :]
