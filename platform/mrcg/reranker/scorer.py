"""Score query graphs with a trained reranker."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor

from mrcg.reranker.graph_features import GraphBatch
from mrcg.reranker.graph_table import GraphTable
from mrcg.reranker.leave_one_out import LeaveOneOut
from mrcg.reranker.model import Reranker
from mrcg.reranker.spec import WEIGHTS, read_spec
from mrcg.storage.store import Artefact
from mrcg.training.batches import Indices

#: Graphs, each without one node, that are scored at once.
GRAPH_BATCH = 64


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
            return _scores(self.reranker, graph)

    def leave_one_out(self, query_d: npt.NDArray[np.float32], neighbours_nd: npt.NDArray[np.float16]) -> LeaveOneOut:
        """Return the edge weights of one query graph, and the scores with each of its n nodes left out."""
        count = len(neighbours_nd)
        with torch.inference_mode():
            queries, neighbours = torch.from_numpy(query_d)[None], torch.from_numpy(neighbours_nd)[None]
            present = torch.ones(1, count, dtype=torch.bool, device=self.device)
            queries, neighbours = queries.to(self.device), neighbours.to(self.device)
            weights = self.reranker.graphs(queries, neighbours, present).adjacency_bnn[0]
            parts, nodes = [], torch.arange(count, device=self.device)
            for left_out in nodes.split(GRAPH_BATCH):
                # It becomes a pad at the end, so that the ranks of the others close the gap.
                order = torch.argsort((nodes == left_out[:, None]).int(), dim=1, stable=True)
                graphs = self.reranker.graphs(
                    queries.expand(len(left_out), -1), neighbours[0][order], (nodes < count - 1).expand(order.shape)
                )
                scores = torch.sigmoid(self.reranker(graphs))
                parts.append(torch.empty_like(scores).scatter(1, order, scores))
        return LeaveOneOut(weights.cpu().numpy(), torch.cat(parts).cpu().numpy())


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

    def explain(self, embedding_d: npt.NDArray[np.float32], vectors_nd: npt.NDArray[np.float16]) -> LeaveOneOut:
        """Return the edges of one query's graph, and its scores with each node left out."""
        return self.scorer.leave_one_out(embedding_d, vectors_nd)


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
            scores[indices] = _scores(reranker, batch)
    return scores


def _scores(reranker: Reranker, graphs: GraphBatch) -> npt.NDArray[np.float32]:
    """Return (b, n) scores in [0, 1], -1 for pads."""
    scores: npt.NDArray[np.float32] = torch.where(graphs.mask_bn, torch.sigmoid(reranker(graphs)), -1.0).cpu().numpy()
    return scores
