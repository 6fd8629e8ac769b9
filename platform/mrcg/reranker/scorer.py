"""Score query graphs with a trained reranker."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor

from mrcg.reranker.graph_features import GraphBatch
from mrcg.reranker.graph_table import GraphTable
from mrcg.reranker.influence import Influences
from mrcg.reranker.model import Reranker
from mrcg.reranker.spec import WEIGHTS, read_spec
from mrcg.storage.store import Artefact
from mrcg.training.batches import Indices

#: Edges whose influence is computed at once; each takes one graph without that edge.
EDGE_BATCH = 256


class Scorer:
    """Scores query graphs. Not thread-safe: use one instance per thread."""

    def __init__(self, reranker: Reranker, device: str = "cpu") -> None:
        self.reranker = reranker.to(device).eval()
        self.device = device

    @classmethod
    def open(cls, artefact: Artefact, device: str = "cpu", encoder_fingerprint: str | None = None) -> Scorer:
        """Load a version of kind ``rerankers``; the hash of every file is checked as it is read.

        Args:
            artefact: the version.
            device: torch device to score on.
            encoder_fingerprint: fingerprint of the encoder whose embeddings are to be scored; None skips the check.

        Raises:
            IntegrityError: a file differs from the published one.
            WeightsError: the reranker was trained on another encoder's embeddings, or was written by an incompatible
                version of MRCG.
        """
        reranker = Reranker(read_spec(artefact, encoder_fingerprint))
        reranker.load_state_dict(safetensors.torch.load(artefact.read_bytes(WEIGHTS)))
        return cls(reranker, device)

    def score(
        self,
        queries_bd: npt.NDArray[np.float32],
        neighbours_bnd: npt.NDArray[np.float16],
        mask_bn: npt.NDArray[np.bool_],
    ) -> npt.NDArray[np.float32]:
        """Return (b, n) scores in [0, 1] of the neighbours of each query, -1 for pads."""
        with torch.inference_mode():
            mask = torch.from_numpy(mask_bn).to(self.device)
            graph = self.reranker.graphs(
                torch.from_numpy(queries_bd).to(self.device), torch.from_numpy(neighbours_bnd).to(self.device), mask
            )
            scores = torch.where(mask, torch.sigmoid(self.reranker(graph)), -1.0)
        out: npt.NDArray[np.float32] = scores.cpu().numpy()
        return out

    def influences(
        self, query_d: npt.NDArray[np.float32], neighbours_nd: npt.NDArray[np.float16], nodes: Sequence[int]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return the edge weights of one query graph, and how much each edge changes the scores of the given nodes.

        The graph is scored again without each edge of each given node.

        Returns:
            (n, n) edge weights, and (nodes, n) the score of each given node minus its score without the edge to each
            node of the graph.
        """
        count = len(neighbours_nd)
        with torch.inference_mode():
            queries, neighbours = torch.from_numpy(query_d)[None], torch.from_numpy(neighbours_nd)[None]
            mask = torch.ones(1, count, dtype=torch.bool, device=self.device)
            graph = self.reranker.graphs(queries.to(self.device), neighbours.to(self.device), mask)
            full_scores = torch.sigmoid(self.reranker(graph))[0]
            node = torch.tensor(nodes, device=self.device).repeat_interleave(count)
            other = torch.arange(count, device=self.device).repeat(len(nodes))
            scores = [
                torch.sigmoid(self.reranker(_without_edges(graph, i, j))).gather(1, i[:, None])[:, 0]
                for i, j in zip(node.split(EDGE_BATCH), other.split(EDGE_BATCH), strict=True)
            ]
            changes = full_scores[node] - torch.cat(scores)
        weights: npt.NDArray[np.float32] = graph.adjacency_bnn[0].cpu().numpy()
        return weights, changes.reshape(len(nodes), count).cpu().numpy()


def _without_edges(graph: GraphBatch, i_e: torch.Tensor, j_e: torch.Tensor) -> GraphBatch:
    """Return one copy of a graph for each edge (i, j), without that edge."""
    count = len(i_e)
    adjacency, copies = graph.adjacency_bnn.repeat(count, 1, 1), torch.arange(count, device=i_e.device)
    adjacency[copies, i_e, j_e] = 0.0
    adjacency[copies, j_e, i_e] = 0.0
    return GraphBatch(graph.x_bnf.expand(count, -1, -1), adjacency, graph.mask_bn.expand(count, -1))


class Reranking:
    """Reranks several queries in one batch, with neighbour lists padded to the same length."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def rerank(
        self, embeddings_bd: npt.NDArray[np.float32], neighbours: list[npt.NDArray[np.float16]]
    ) -> list[npt.NDArray[np.float32]]:
        """(b, d) queries and b arrays (n_i, d) -> b arrays (n_i,) of scores in [0, 1]."""
        longest = max(len(vectors) for vectors in neighbours)
        padded = np.zeros((len(neighbours), longest, embeddings_bd.shape[1]), dtype=np.float16)
        mask = np.zeros((len(neighbours), longest), dtype=bool)
        for number, vectors in enumerate(neighbours):
            padded[number, : len(vectors)] = vectors
            mask[number, : len(vectors)] = True
        scores = self.scorer.score(embeddings_bd, padded, mask)
        return [row[: len(vectors)] for row, vectors in zip(scores, neighbours, strict=True)]

    def explain(
        self, embedding_d: npt.NDArray[np.float32], vectors_nd: npt.NDArray[np.float16], nodes: Sequence[int]
    ) -> Influences:
        """Return the influences of edges on the scores of the given nodes of one query's graph."""
        return Influences(*self.scorer.influences(embedding_d, vectors_nd, nodes))


def gather_batch(
    reranker: Reranker, graphs: GraphTable, indices: Indices, vectors_nd: npt.NDArray[np.float16], device: str
) -> tuple[GraphBatch, Tensor]:
    """Return the graphs at ``indices`` with features from the stored embeddings, and their (b, n) relevance."""
    rows = graphs.neighbours_qn[indices]
    neighbours = torch.from_numpy(vectors_nd[rows]).to(device)
    queries = torch.from_numpy(vectors_nd[graphs.queries[indices]]).to(device)
    batch = reranker.graphs(queries, neighbours, torch.from_numpy(rows >= 0).to(device))
    return batch, torch.from_numpy(graphs.relevant_qn[indices]).to(device)


def score_graphs(
    reranker: Reranker, graphs: GraphTable, vectors_nd: npt.NDArray[np.float16], batch_size: int, device: str
) -> npt.NDArray[np.float32]:
    """Return (q, n) scores in [0, 1] of all nodes, -1 for pads."""
    reranker.eval()
    scores = np.full(graphs.neighbours_qn.shape, -1.0, dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(graphs), batch_size):
            indices = np.arange(start, min(start + batch_size, len(graphs)))
            batch, _ = gather_batch(reranker, graphs, indices, vectors_nd, device)
            scores[indices] = torch.where(batch.mask_bn, torch.sigmoid(reranker(batch)), -1.0).cpu().numpy()
    return scores


def rerank_order(scores_qn: npt.NDArray[np.float32]) -> Indices:
    """Return (q, n) ANN ranks by descending score; ties keep the ANN order."""
    return np.argsort(-scores_qn, axis=1, kind="stable")
