"""Do the edges of a query graph matter? Rerankers with other edges, on the stored embeddings of finished runs.

::

    python -m tests.bench.edges --store store --reports VERSION,VERSION --out edges.json

Each way of making edges is trained as `mrcg train-reranker` trains the reranker of the report, from the same seed, and
measured on validation and test graphs: with its edges, without any, with those of another query of the batch, and with
its own between other nodes. MAP is that by score, and that of the order s - λ d with the λ that is best on the validation
graphs. Gains are over the set model, whose edges are all equal: its convolution is the mean over the list.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from mrcg.config.settings import RerankerSettings
from mrcg.corpus.embeddings import embeddings_of
from mrcg.corpus.reader import Corpus
from mrcg.corpus.splits import Split
from mrcg.encoder.appearance import facts_in
from mrcg.evaluation.order_choice import GRID, order_of
from mrcg.hashing import seed_of
from mrcg.index.distances import exact_search
from mrcg.metrics.bootstrap import paired
from mrcg.metrics.order import BY_SCORE, HitOrder
from mrcg.metrics.ranking import average_precision, precision_at
from mrcg.reranker.graph_features import GraphBatch, angular_adjacency, query_graphs
from mrcg.reranker.graph_table import GraphTable, read_graphs
from mrcg.reranker.model import Reranker
from mrcg.reranker.scorer import gather_batch
from mrcg.reranker.spec import RerankerSpec
from mrcg.reranker.trainer import RerankerTrainer, TrainingGraphs
from mrcg.stages.counts import EmbeddingCounts
from mrcg.storage.store import Store

#: A row number is two columns of the vectors that a reranker gets: fp16 holds whole numbers up to 2048.
PLACES = 1000
SECOND_HOP, RECIPROCAL, BATCH, RESAMPLES = 20, 10, 64, 1000
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Lists:
    """What edges are made of: nodes and query of each graph, and the lists of the gallery scans themselves.

    Attributes:
        query_bd: (b, d) queries.
        nodes_bnd: (b, n, d) their neighbours.
        mask_bn: False for pads.
        rows_bn: rows of the neighbours.
        query_b: rows of the queries.
    """

    query_bd: Tensor
    nodes_bnd: Tensor
    mask_bn: Tensor
    rows_bn: Tensor
    query_b: Tensor


class WithEdges(Reranker):
    """The reranker with other edges. Subclasses say which."""

    title = "angle between neighbours (the paper)"
    gallery: npt.NDArray[np.int64]  # (rows, SECOND_HOP) nearest gallery rows of each scan, set by `measured`

    def graphs(self, queries_bd: Tensor, neighbours_bnd: Tensor, mask_bn: Tensor) -> GraphBatch:
        """The graphs of the reranker, with these edges."""
        width = self.spec.embedding_dim
        rows = [(x[..., -2].float() * PLACES + x[..., -1].float()).long() for x in (neighbours_bnd, queries_bd)]
        lists = Lists(queries_bd[..., :width].float(), neighbours_bnd[..., :width].float(), mask_bn, *rows)
        plain = query_graphs(lists.query_bd, lists.nodes_bnd, mask_bn, self.spec.features)
        return self.with_edges(plain, lists)

    def with_edges(self, plain: GraphBatch, lists: Lists) -> GraphBatch:
        """The graphs with the edges of the paper, replaced by others."""
        edges = self.edges(lists) * (lists.mask_bn[:, :, None] & lists.mask_bn[:, None, :])
        diagonal = torch.eye(edges.shape[1], dtype=torch.bool)
        return GraphBatch(plain.x_bnf, edges.masked_fill(diagonal, 0.0), plain.mask_bn)

    def edges(self, lists: Lists) -> Tensor:
        """(b, n, n) edge weights, symmetric; the diagonal does not matter."""
        return angular_adjacency(lists.nodes_bnd)


class NoEdges(WithEdges):
    """Each node for itself."""

    title = "none: each node for itself"

    def edges(self, lists: Lists) -> Tensor:
        """No weights."""
        return torch.zeros(*lists.mask_bn.shape, lists.mask_bn.shape[1])


class SetModel(WithEdges):
    """All edges equal: a set model, whose convolution is the mean over the list."""

    title = "all equal (set model)"

    def edges(self, lists: Lists) -> Tensor:
        """Ones."""
        return torch.ones(*lists.mask_bn.shape, lists.mask_bn.shape[1])


def squared_distances(lists: Lists) -> tuple[Tensor, Tensor]:
    """(b, n, n) squared distances between the nodes, and (b, 1, 1) their typical size in each graph."""
    squared = torch.cdist(lists.nodes_bnd, lists.nodes_bnd).square()
    pairs = lists.mask_bn[:, :, None] & lists.mask_bn[:, None, :]
    return squared, (squared * pairs).sum((1, 2), keepdim=True) / pairs.sum((1, 2), keepdim=True).clamp_min(1)


class HeatKernel(WithEdges):
    """Weights that fall with the distance, relative to the graph: they span from 1 to nearly 0."""

    title = "exp(-4 d²) between neighbours, d² relative to the graph"

    def edges(self, lists: Lists) -> Tensor:
        """(b, n, n) weights."""
        squared, typical = squared_distances(lists)
        return torch.exp(-4 * squared / typical.clamp_min(1e-6))


class Reciprocal(WithEdges):
    """Edges between nodes that are among the nearest of each other within the list."""

    title = f"{RECIPROCAL}-reciprocal neighbours within the list"

    def edges(self, lists: Lists) -> Tensor:
        """(b, n, n) zeros and ones."""
        squared, _ = squared_distances(lists)
        squared = squared.masked_fill(~lists.mask_bn[:, None, :], torch.inf)
        rank = squared.argsort(dim=-1, stable=True).argsort(dim=-1)
        near = rank <= RECIPROCAL  # itself is the first
        return (near & near.transpose(1, 2)).float()


class SecondHop(WithEdges):
    """The share of gallery scans that the lists of two nodes have in common, without the query itself."""

    title = f"overlap of the nodes' own lists of {SECOND_HOP} gallery scans"

    def edges(self, lists: Lists) -> Tensor:
        """(b, n, n) Jaccard overlaps."""
        own = torch.from_numpy(self.gallery)[lists.rows_bn.clamp_min(0)]
        # A training query is in lists of its neighbours, a test query never.
        own = own.masked_fill(own == lists.query_b[:, None, None], -1)
        return torch.stack([_overlap(one) for one in own])


def _overlap(lists_nk: Tensor) -> Tensor:
    """(n, k) rows, -1 for none -> (n, n) Jaccard overlap of the lists."""
    rows, places = lists_nk.clamp_min(0).unique(return_inverse=True)
    member = torch.zeros(len(lists_nk), len(rows)).scatter_(1, places, 1.0)
    # What stands for "none" is the row 0, too: only true members count.
    absent = torch.zeros_like(member).scatter_reduce_(1, places, (lists_nk < 0).float(), "amax")
    member = member * (1 - absent)
    common = member @ member.T
    sizes = member.sum(1)
    return common / (sizes[:, None] + sizes[None, :] - common).clamp_min(1)


class QueryNode(HeatKernel):
    """The query is a node of the graph, too: its features are those of a scan at its own place."""

    title = "exp(-4 d²), with the query as a node"

    def with_edges(self, plain: GraphBatch, lists: Lists) -> GraphBatch:
        """Graphs of one more node, the last."""
        nodes = torch.cat([lists.nodes_bnd, lists.query_bd[:, None]], 1)
        mask = functional.pad(lists.mask_bn, (0, 1), value=True)
        grown = Lists(lists.query_bd, nodes, mask, functional.pad(lists.rows_bn, (0, 1)), lists.query_b)
        x_bmf = query_graphs(lists.query_bd, nodes, mask, self.spec.features).x_bnf
        whole = super().with_edges(GraphBatch(x_bmf, plain.adjacency_bnn, mask), grown)
        # The mask is of the nodes that get a score.
        return GraphBatch(x_bmf, whole.adjacency_bnn, plain.mask_bn)

    def forward(self, graph: GraphBatch, generator: torch.Generator | None = None) -> Tensor:
        """Logits of all nodes but the query."""
        whole = GraphBatch(graph.x_bnf, graph.adjacency_bnn, functional.pad(graph.mask_bn, (0, 1), value=True))
        return super().forward(whole, generator)[:, :-1]


class Learned(WithEdges):
    """Weights learned from cosine, distance, and the two nodes' ranks and distances to the query."""

    title = "learned from cosine, distance, ranks and distances to the query"

    def __init__(self, spec: RerankerSpec) -> None:
        super().__init__(spec)
        self.weight = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1), nn.Sigmoid())

    def edges(self, lists: Lists) -> Tensor:
        """(b, n, n) weights, the same in both directions."""
        squared, typical = squared_distances(lists)
        to_query = (lists.nodes_bnd - lists.query_bd[:, None]).square().sum(-1) / typical[..., 0].clamp_min(1e-6)
        rank = torch.arange(lists.mask_bn.shape[1]).expand(lists.mask_bn.shape) / lists.mask_bn.shape[1]

        def sum_and_gap(x_bn: Tensor) -> list[Tensor]:
            return [x_bn[:, :, None] + x_bn[:, None, :], (x_bn[:, :, None] - x_bn[:, None, :]).abs()]

        columns = [angular_adjacency(lists.nodes_bnd), squared / typical.clamp_min(1e-6)]
        return self.weight(torch.stack([*columns, *sum_and_gap(to_query), *sum_and_gap(rank)], -1))[..., 0]


class Attention(HeatKernel):
    """Attention of each node over the list, to near nodes first, instead of the two convolutions."""

    title = "attention over the list, biased by exp(-4 d²)"

    def __init__(self, spec: RerankerSpec) -> None:
        super().__init__(spec)
        width = sum(self.network.layers[0].skip.weight.shape[1:])
        self.network = _AttentionNetwork(width, spec.hidden, spec.dropout)


class _AttentionNetwork(nn.Module):
    def __init__(self, inputs: int, hidden: int, dropout: float, heads: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(inputs, hidden)])
        self.attention = nn.ModuleList([nn.MultiheadAttention(hidden, heads, dropout, batch_first=True) for _ in "ab"])
        self.norms = nn.ModuleList([nn.LayerNorm(hidden) for _ in "ab"])
        self.dropout, self.heads = nn.Dropout(dropout), heads

    def forward(self, x_bnf: Tensor, adjacency_bnn: Tensor, mask_bn: Tensor) -> Tensor:
        x = functional.relu(self.layers[0](x_bnf))
        # A node always attends to itself; an edge of weight 0 is none.
        own = torch.eye(x.shape[1])
        bias = (adjacency_bnn + own).clamp_min(1e-6).log().masked_fill(~mask_bn[:, None, :] & (own == 0), -1e4)
        bias = bias.repeat_interleave(self.heads, 0)
        for attention, norm in zip(self.attention, self.norms, strict=True):
            x = norm(x + self.dropout(attention(x, x, x, attn_mask=bias, need_weights=False)[0]))
        return x * mask_bn[..., None]


WAYS: Mapping[str, type[WithEdges]] = {
    "paper": WithEdges, "none": NoEdges, "set": SetModel, "heat": HeatKernel, "reciprocal": Reciprocal,
    "second-hop": SecondHop, "query-node": QueryNode, "learned": Learned, "attention": Attention,
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A finished run: its graphs, vectors with row numbers, lists of the gallery, and the settings of its reranker."""

    settings: RerankerSettings
    spec: RerankerSpec
    seed: int
    graphs: TrainingGraphs
    test: GraphTable
    groups: list[str]
    gallery: npt.NDArray[np.int64]

    @classmethod
    def of(cls, store: Store, report: str) -> Run:
        """Open what a report was made from."""
        inputs = store.manifest("reports", report).inputs
        opened = {kind: store.artefact(kind, inputs[kind]) for kind in ("corpus", "splits", "embeddings", "graphs")}
        recorded = store.manifest("rerankers", inputs["rerankers"]).settings
        settings = RerankerSettings.model_validate(recorded["reranker"])
        facts = facts_in(opened["embeddings"].manifest)
        assert opened["embeddings"].manifest.counts_as(EmbeddingCounts).images < 2048 * PLACES
        vectors = embeddings_of(opened["embeddings"])[:, : facts.trained_dim]
        numbers = np.arange(len(vectors))
        marked = np.column_stack([vectors, numbers // PLACES, numbers % PLACES]).astype(np.float16)
        corpus, split = Corpus(opened["corpus"]), Split(opened["splits"])
        train = np.flatnonzero(split.train)
        floats = vectors.astype(np.float32)
        near = exact_search(floats, floats[train], SECOND_HOP + 1)
        parts = {part: read_graphs(opened["graphs"], part) for part in ("train", "validation", "test")}
        return cls(
            settings,
            RerankerSpec.of(settings, facts.trained_dim, facts.encoder),
            recorded["seed"],
            TrainingGraphs(parts["train"], parts["validation"], marked),
            parts["test"],
            corpus.groups,
            train[near],
        )


def scores_of(reranker: Reranker, graphs: GraphTable, vectors: Any, change: Callable[[Tensor], Tensor]) -> Scores:
    """(q, n) scores of all nodes, with the edges of each batch changed."""
    reranker.eval()
    scores = np.full(graphs.neighbours_qn.shape, -1.0, dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(graphs), BATCH):
            indices = np.arange(start, min(start + BATCH, len(graphs)))
            batch, _ = gather_batch(reranker, graphs, indices, vectors, "cpu")
            changed = GraphBatch(batch.x_bnf, change(batch.adjacency_bnn), batch.mask_bn)
            scores[indices] = torch.sigmoid(reranker(changed)).numpy()
    return np.where(graphs.neighbours_qn >= 0, scores, -1.0)


def shuffled(edges_bnn: Tensor) -> Tensor:
    """The edges of another query of the batch."""
    return edges_bnn.roll(1, 0)


def permuted(edges_bnn: Tensor) -> Tensor:
    """The edges of the query itself, between other nodes: unlike those of another query, they say nothing of ranks."""
    order = torch.randperm(edges_bnn.shape[1], generator=torch.Generator().manual_seed(0))
    return edges_bnn[:, order][:, :, order]


CHANGES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "edges": lambda edges: edges, "without": torch.zeros_like, "shuffled": shuffled, "permuted": permuted,
}  # fmt: skip


def ranked(graphs: GraphTable, scores: Scores, order: HitOrder = BY_SCORE) -> npt.NDArray[np.bool_]:
    """(q, n) relevance in an order."""
    ranks = order.ranks(scores, graphs.distances_qn, np.zeros(scores.shape, dtype=bool))
    return np.take_along_axis(graphs.relevant_qn, ranks, 1)


def measured(run: Run, way: type[WithEdges], epochs: int) -> dict[str, Any]:
    """Train a reranker with these edges and return its figures, and AP of each test query."""
    settings = run.settings.model_copy(update={"epochs": epochs, "keep": "last", "snapshots": 0})
    torch.manual_seed(seed_of(run.seed, "reranker"))
    reranker = way(run.spec)
    reranker.gallery = run.gallery
    trainer, started = RerankerTrainer(reranker, settings, run.seed, run.graphs), time.monotonic()
    while not trainer.finished:
        trainer.run_epoch(lambda done, total: None)
    seconds = time.monotonic() - started
    row: dict[str, Any] = {"seconds": seconds}
    parts = {"validation": run.graphs.validation, "test": run.test}
    for name, change in CHANGES.items():
        scores = {part: scores_of(reranker, graphs, run.graphs.vectors_nd, change) for part, graphs in parts.items()}
        known, graded = parts["validation"], scores["validation"]
        fused = max(map(order_of, GRID), key=lambda order: average_precision(ranked(known, graded, order)).mean())
        for part, graphs in parts.items():
            for kind, order in (("score", BY_SCORE), ("fused", fused)):
                relevant = ranked(graphs, scores[part], order)
                ap = average_precision(relevant)
                row[f"{part}_{kind}_{name}"] = float(ap.mean())
                if name == "edges":
                    row[f"{part}_{kind}_precision_at_10"] = float(precision_at(relevant, 10).mean())
                    row[f"{part}_{kind}_ap"] = ap
    return row


def gain(run: Run, row: dict[str, Any], base: dict[str, Any], name: str) -> dict[str, float]:
    """The paired gain in MAP over the set model, on a part and in an order."""
    graphs = run.test if name.startswith("test") else run.graphs.validation
    groups = [run.groups[query] for query in graphs.queries.tolist()]
    return paired(base[f"{name}_ap"], row[f"{name}_ap"], groups, RESAMPLES, seed_of(0, "bootstrap")).model_dump()


def main() -> None:
    """Measure all ways on the first report, those of ``--again`` on the others, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--reports", required=True, help="versions; on the first, all ways are tried")
    parser.add_argument("--again", default="", help="ways that are tried on the other reports, too")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    rows = []
    for number, report in enumerate(chosen.reports.split(",")):
        run = Run.of(Store(chosen.store), report)
        names = list(WAYS) if number == 0 else ["set", *filter(None, chosen.again.split(","))]
        base: dict[str, Any] = {}
        for way in sorted(names, key=lambda way: way != "set"):
            row = measured(run, WAYS[way], chosen.epochs)
            base = base or row
            names_of_gains = [f"{part}_{kind}" for part in ("validation", "test") for kind in ("score", "fused")]
            gains = {f"{name}_gain": gain(run, row, base, name) for name in names_of_gains}
            kept = {key: value for key, value in row.items() if not key.endswith("_ap")}
            rows.append({"way": way, "what": WAYS[way].title, "report": report, "seed": run.seed, **kept, **gains})
            print(json.dumps(rows[-1]), flush=True)
            chosen.out.write_text(json.dumps({"epochs": chosen.epochs, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
