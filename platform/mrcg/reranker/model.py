"""The reranker and the baselines it is compared with: graph layers, then a score for each node (DESIGN §3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mrcg.errors import WeightsError
from mrcg.reranker.graph_features import GraphBatch, drop_edge, feature_widths, query_graphs
from mrcg.reranker.layers import AttentionLayer, ChebyshevLayer, FeatureScale, GCNLayer, SAGELayer, SkipConvolution
from mrcg.reranker.spec import RerankerSpec


class Network(nn.Module):
    """Graph layers one after the other, with dropout behind each."""

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
    """Two convolutions with linear skips (paper §III-C)."""

    def __init__(self, inputs: int, hidden: int, dropout: float) -> None:
        super().__init__((SkipConvolution(inputs, hidden), SkipConvolution(hidden, hidden)), dropout)


class ChebNet(Network):
    """Two Chebyshev layers of second order."""

    def __init__(self, inputs: int, hidden: int, dropout: float) -> None:
        super().__init__((ChebyshevLayer(inputs, hidden), ChebyshevLayer(hidden, hidden)), dropout)


class GCN(Network):
    """Two convolutions without skips."""

    def __init__(self, inputs: int, hidden: int, dropout: float) -> None:
        super().__init__((GCNLayer(inputs, hidden), GCNLayer(hidden, hidden)), dropout)


class GraphSAGE(Network):
    """Two layers that average the neighbours."""

    def __init__(self, inputs: int, hidden: int, dropout: float) -> None:
        super().__init__((SAGELayer(inputs, hidden), SAGELayer(hidden, hidden)), dropout)


class GAT(Network):
    """Three layers with skips, of 4, 4 and 6 heads; the last averages its heads. A head is ``hidden`` wide."""

    def __init__(self, inputs: int, hidden: int, dropout: float) -> None:
        layers = (
            AttentionLayer(inputs, hidden, heads=4),
            AttentionLayer(4 * hidden, hidden, heads=4),
            AttentionLayer(4 * hidden, hidden, heads=6, average=True),
        )
        super().__init__(layers, dropout)


#: What ``reranker.model`` names.
MODELS: Mapping[str, type[MRCG | ChebNet | GCN | GraphSAGE | GAT]] = {
    "mrcg": MRCG,
    "chebnet": ChebNet,
    "gcn": GCN,
    "graphsage": GraphSAGE,
    "gat": GAT,
}


class Reranker(nn.Module):
    """Scores the nodes of query graphs. It sees no labels of the gallery.

    Args:
        spec: names the network and the node features.

    Raises:
        WeightsError: the spec names a model that is not known here.
    """

    def __init__(self, spec: RerankerSpec) -> None:
        super().__init__()
        if spec.model not in MODELS:
            raise WeightsError(f"no reranker model {spec.model}: known are {', '.join(MODELS)}; upgrade MRCG")
        self.spec = spec
        widths = feature_widths(spec.features, spec.embedding_dim)
        self.scale = FeatureScale(widths) if spec.scale else None
        self.network = MODELS[spec.model](sum(widths), spec.hidden, spec.dropout)
        self.score = nn.Linear(spec.hidden, 1)

    def graphs(self, queries_bd: Tensor, neighbours_bnd: Tensor, mask_bn: Tensor) -> GraphBatch:
        """Query graphs with the node features that this reranker reads; arguments as of ``query_graphs``."""
        return query_graphs(queries_bd, neighbours_bnd, mask_bn, self.spec.features)

    def forward(self, graph: GraphBatch, generator: torch.Generator | None = None) -> Tensor:
        """(b, n) logits; ``generator`` draws the dropped edges in training. Those of pads mean nothing."""
        x, adjacency = graph.x_bnf, graph.adjacency_bnn
        if self.scale is not None:
            x = self.scale(x, graph.mask_bn)
        if self.training and generator is not None:
            adjacency = drop_edge(adjacency, self.spec.drop_edge, generator)
        logits: Tensor = self.score(self.network(x, adjacency, graph.mask_bn))[..., 0]
        return logits

    def fit_scale(self, graphs: GraphBatch) -> None:
        """Start the learned scale of the features from their spread in these graphs; nothing where there is none."""
        if self.scale is not None:
            self.scale.fit(graphs)

    def first_layer(self) -> list[nn.Parameter]:
        """Parameters of the first graph layer: ``reranker.weight_decay_first`` falls on them alone."""
        return list(self.network.layers[0].parameters())
