"""Graph layers of the reranker and its baselines (docs/method.md#reranker, docs/method.md#baselines).

The layers are dense and batched, because a query graph is complete. Each takes (b, n, inputs) node features, (b, n, n)
symmetric edge weights with a zero diagonal, after DropEdge, and a (b, n) mask of the existing nodes. Each applies its
activation and sets pads to 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn import DenseGATConv, DenseGCNConv, DenseSAGEConv

from mrcg.reranker.graph_features import GraphBatch


class SkipConvolution(nn.Module):
    """MRCG: X' = ReLU( D̂^-1/2 (A+I) D̂^-1/2 X W + F(X) ), F a linear skip connection (paper Eq. 7)."""

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

    The paper says "second order, K = 2": polynomials up to T_2. PyG calls this K = 3, because its K is the number of
    polynomials. L is the symmetric normalised Laplacian I - D^-1/2 A D^-1/2. Its largest eigenvalue is set to the upper
    bound 2, so L̂ = L - I = -D^-1/2 A D^-1/2. The row of a node without edges is 0 in L̂, as in PyG.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        # The three W_k stacked: (3 * outputs, inputs).
        self.weights = nn.Linear(inputs, 3 * outputs, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))
        for weight in self.weights.weight.data.chunk(3):
            nn.init.xavier_uniform_(weight)

    def forward(self, x_bnf: Tensor, adjacency_bnn: Tensor, mask_bn: Tensor) -> Tensor:
        """(b, n, inputs) -> (b, n, outputs)."""
        laplacian = -normalised_adjacency(adjacency_bnn)
        # T_0 = X, T_1 = L̂X, T_2 = 2L̂²X - X. Multiply by W_k first: there are usually fewer outputs than inputs.
        zeroth, first, second = self.weights(x_bnf).chunk(3, dim=-1)
        convolved = zeroth - second + laplacian @ (first + 2 * (laplacian @ second))
        return functional.relu(convolved + self.bias) * mask_bn[..., None]


class SAGELayer(nn.Module):
    """GraphSAGE: X' = ReLU( W_1 x_i + W_2 · mean of the neighbours' x_j ) (Hamilton et al. 2017).

    Neighbours are connected by the edges that remain after DropEdge; edge weights are ignored.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = DenseSAGEConv(inputs, outputs)

    def forward(self, x_bnf: Tensor, adjacency_bnn: Tensor, mask_bn: Tensor) -> Tensor:
        """(b, n, inputs) -> (b, n, outputs)."""
        edges = (adjacency_bnn > 0).to(x_bnf.dtype)
        return functional.relu(self.convolution(x_bnf, edges)) * mask_bn[..., None]


class AttentionLayer(nn.Module):
    """GAT with a linear skip: X' = ELU( heads concatenated or averaged + F(X) ) (Veličković et al. 2018).

    A node attends to itself and to its neighbours along the edges that remain after DropEdge; edge weights are ignored.
    Each head is ``outputs`` wide, as in the GAT paper's inductive network.
    """

    def __init__(self, inputs: int, outputs: int, heads: int, average: bool = False) -> None:
        super().__init__()
        self.convolution = DenseGATConv(inputs, outputs, heads, concat=not average)
        self.skip = nn.Linear(inputs, outputs if average else heads * outputs)

    def forward(self, x_bnf: Tensor, adjacency_bnn: Tensor, mask_bn: Tensor) -> Tensor:
        """(b, n, inputs) -> (b, n, heads * outputs), or (b, n, outputs) if heads are averaged."""
        attended = self.convolution(x_bnf, adjacency_bnn)
        return functional.elu(attended + self.skip(x_bnf)) * mask_bn[..., None]


class FeatureScale(nn.Module):
    """A learned shift and scale of each column of the node features: (x - shift) * scale.

    Args:
        widths: number of columns of each feature, in order.
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
        """Initialise shift and scale so that each column has mean 0 and standard deviation 1 over these graphs' nodes.

        Almost constant columns are scaled less. Without nodes, nothing changes.
        """
        nodes_mf = graphs.x_bnf[graphs.mask_bn].double()
        if not len(nodes_mf):
            return
        mean, deviation = nodes_mf.mean(dim=0), nodes_mf.std(dim=0, correction=0)
        # The deviation of a constant column is only rounding error.
        deviation = torch.where(deviation > 1e-6 * mean.abs(), deviation, 0.0)
        # A column with little variance in these graphs may vary more in others: its scale is at most 100 times that of
        # the column of the same feature with the largest deviation.
        floor = torch.cat([part.max().expand_as(part) / 100 for part in deviation.split(self.widths)])
        deviation = torch.maximum(deviation, floor)
        self.shift_f.copy_(mean)
        self.scale_f.copy_(1 / torch.where(deviation > 0, deviation, 1.0))


def normalised_adjacency(adjacency_bnn: Tensor) -> Tensor:
    """Return the (b, n, n) D^-1/2 A D^-1/2, D the row sums; rows and columns of nodes without edges are 0."""
    degree_bn = adjacency_bnn.sum(-1)
    root_bn = torch.where(degree_bn > 0, degree_bn, 1.0).rsqrt()
    return root_bn[:, :, None] * adjacency_bnn * root_bn[:, None, :]
