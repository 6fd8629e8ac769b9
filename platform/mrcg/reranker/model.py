"""The reranker and its baselines: graph layers, then a score for each node (docs/method.md#reranker)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mrcg.errors import WeightsError
from mrcg.reranker.graph_features import GraphBatch, drop_edge, feature_widths, query_graphs
from mrcg.reranker.layers import AttentionLayer, ChebyshevLayer, FeatureScale, GCNLayer, SAGELayer, SkipConvolution
from mrcg.reranker.spec import RerankerSpec


class Network(nn.Module):
    """A stack of graph layers with dropout after each."""

    def __init__(self, layers: Sequence[nn.Module], dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_bnf: Tensor, adjacency_bnn: Tensor, mask_bn: Tensor) -> Tensor:
        """(b, n, inputs) -> (b, n, hidden)."""
        for layer in self.layers:
            x_bnf = self.dropout(layer(x_bnf, adjacency_bnn, mask_bn))
        return x_bnf


class MRCG(Network):
    """Two graph convolutions with linear skip connections (paper §III-C)."""

    def __init__(self, inputs: int, hidden: int, dropout: float) -> None:
        super().__init__((SkipConvolution(inputs, hidden), SkipConvolution(hidden, hidden)), dropout)


class ChebNet(Network):
    """Two Chebyshev layers of order 2."""

    def __init__(self, inputs: int, hidden: int, dropout: float) -> None:
        super().__init__((ChebyshevLayer(inputs, hidden), ChebyshevLayer(hidden, hidden)), dropout)


class GCN(Network):
    """Two graph convolutions without skip connections."""

    def __init__(self, inputs: int, hidden: int, dropout: float) -> None:
        super().__init__((GCNLayer(inputs, hidden), GCNLayer(hidden, hidden)), dropout)


class GraphSAGE(Network):
    """Two GraphSAGE layers with mean aggregation."""

    def __init__(self, inputs: int, hidden: int, dropout: float) -> None:
        super().__init__((SAGELayer(inputs, hidden), SAGELayer(hidden, hidden)), dropout)


class GAT(Network):
    """Three attention layers with skip connections: 4, 4 and 6 heads of width ``hidden``; the last averages them."""

    def __init__(self, inputs: int, hidden: int, dropout: float) -> None:
        layers = (
            AttentionLayer(inputs, hidden, heads=4),
            AttentionLayer(4 * hidden, hidden, heads=4),
            AttentionLayer(4 * hidden, hidden, heads=6, average=True),
        )
        super().__init__(layers, dropout)


#: Networks by the value of ``reranker.model``.
MODELS: Mapping[str, type[MRCG | ChebNet | GCN | GraphSAGE | GAT]] = {
    "mrcg": MRCG,
    "chebnet": ChebNet,
    "gcn": GCN,
    "graphsage": GraphSAGE,
    "gat": GAT,
}


class Reranker(nn.Module):
    """Scores the nodes of query graphs. Gallery labels are not among its inputs.

    Args:
        spec: architecture: the network, its size and the node features.

    Raises:
        WeightsError: the spec names a model that this version of MRCG does not know.
    """

    def __init__(self, spec: RerankerSpec) -> None:
        super().__init__()
        if spec.model not in MODELS:
            raise WeightsError(
                f"unknown reranker model {spec.model}: this version of MRCG supports {', '.join(MODELS)}; upgrade MRCG"
            )
        self.spec = spec
        widths = feature_widths(spec.features, spec.embedding_dim)
        self.scale = FeatureScale(widths) if spec.scale else None
        self.network = MODELS[spec.model](sum(widths), spec.hidden, spec.dropout)
        self.score = nn.Linear(spec.hidden, 1)

    def graphs(self, queries_bd: Tensor, neighbours_bnd: Tensor, mask_bn: Tensor) -> GraphBatch:
        """Return query graphs with this reranker's node features; for the arguments see ``query_graphs``.

        Only the trained part of an embedding is used, which comes first (docs/method.md#appearance-part).
        """
        width = self.spec.embedding_dim
        return query_graphs(queries_bd[..., :width], neighbours_bnd[..., :width], mask_bn, self.spec.features)

    def forward(self, graph: GraphBatch, generator: torch.Generator | None = None) -> Tensor:
        """Return (b, n) logits, arbitrary for pads; ``generator`` draws the edges that DropEdge removes in training."""
        x, adjacency = graph.x_bnf, graph.adjacency_bnn
        if self.scale is not None:
            x = self.scale(x, graph.mask_bn)
        if self.training and generator is not None:
            adjacency = drop_edge(adjacency, self.spec.drop_edge, generator)
        logits: Tensor = self.score(self.network(x, adjacency, graph.mask_bn))[..., 0]
        return logits

    def fit_scale(self, graphs: GraphBatch) -> None:
        """Initialise the feature scale from these graphs; does nothing if the spec has no scale."""
        if self.scale is not None:
            self.scale.fit(graphs)

    def first_layer(self) -> list[nn.Parameter]:
        """Return the parameters of the first graph layer; ``reranker.weight_decay_first`` applies only to them."""
        return list(self.network.layers[0].parameters())
