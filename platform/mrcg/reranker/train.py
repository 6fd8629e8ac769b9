"""Training of the reranker on finished embeddings, one epoch at a time (DESIGN §3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mrcg.config import RerankerSettings
from mrcg.encoder.batches import Indices, own_share, shuffled_batches
from mrcg.errors import TrainingError
from mrcg.evaluation.metrics import mean_average_precision
from mrcg.graph.adjacency import GraphBatch, query_graphs
from mrcg.graph.table import GraphTable
from mrcg.hashing import seed_of
from mrcg.reranker.model import Reranker, focal_loss
from mrcg.reranker.spec import RerankerSpec
from mrcg.training import TrainingState, Worker


@dataclass(frozen=True)
class TrainingGraphs:
    """Graphs of training and validation queries (these may be none, then the last epoch is kept).

    Their features are gathered from ``vectors_nd``: (rows, d) stored embeddings of the whole gallery.
    """

    train: GraphTable
    validation: GraphTable
    vectors_nd: npt.NDArray[np.float16]


def new_reranker(settings: RerankerSettings, embedding_dim: int, seed: int) -> Reranker:
    """A reranker with seeded weights."""
    torch.manual_seed(seed_of(seed, "reranker"))
    return Reranker(
        RerankerSpec(
            embedding_dim=embedding_dim, hidden=settings.hidden, dropout=settings.dropout, drop_edge=settings.drop_edge
        )
    )


def gather(
    graphs: GraphTable, which: Indices, vectors_nd: npt.NDArray[np.float16], device: str
) -> tuple[GraphBatch, Tensor]:
    """Graphs of some queries with features gathered from the stored embeddings, and their (b, n) labels."""
    rows = graphs.neighbours_qn[which]
    neighbours = torch.from_numpy(vectors_nd[rows]).to(device)
    queries = torch.from_numpy(vectors_nd[graphs.queries[which]]).to(device)
    batch = query_graphs(queries, neighbours, torch.from_numpy(rows >= 0).to(device))
    return batch, torch.from_numpy(graphs.relevant_qn[which]).to(device)


def score_graphs(
    reranker: Reranker, graphs: GraphTable, vectors_nd: npt.NDArray[np.float16], batch_size: int, device: str
) -> npt.NDArray[np.float32]:
    """(q, n) scores in [0, 1] of all nodes, -1 where there is none."""
    reranker.eval()
    scores = np.full(graphs.neighbours_qn.shape, -1.0, dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(graphs), batch_size):
            which = np.arange(start, min(start + batch_size, len(graphs)))
            batch, _ = gather(graphs, which, vectors_nd, device)
            scores[which] = torch.where(batch.mask_bn, torch.sigmoid(reranker(batch)), -1.0).cpu().numpy()
    return scores


def rerank_order(scores_qn: npt.NDArray[np.float32]) -> Indices:
    """(q, n) ANN ranks by falling score, ties by ANN rank (DESIGN §3)."""
    return np.argsort(-scores_qn, axis=1, kind="stable")


class RerankerTrainer:
    """Trains a reranker and keeps the weights with the best validation MAP.

    Args:
        reranker: trained in place, already on the worker's device.
        settings: of the reranker.
        seed: of the run.
        graphs: what is learned from and what every choice looks at.
        worker: this process among the workers.
        wrap: puts a model into its data-parallel form.
    """

    def __init__(
        self,
        reranker: Reranker,
        settings: RerankerSettings,
        seed: int,
        graphs: TrainingGraphs,
        worker: Worker = Worker(),
        wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    ) -> None:
        self.reranker = reranker
        self.settings = settings
        self.seed = seed
        self.graphs = graphs
        self.worker = worker
        self.model = wrap(reranker)
        self.optimizer = torch.optim.Adam(reranker.parameters(), lr=settings.learning_rate)
        self.state = TrainingState(reranker, self.optimizer)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return len(self.state.history) >= self.settings.epochs

    def run_epoch(self, on_batch: Callable[[int, int], None]) -> dict[str, float]:
        """One pass over the training graphs, then validation; returns the epoch's row of the history.

        Raises:
            TrainingError: the loss is not a number.
        """
        epoch = len(self.state.history)
        torch.manual_seed(seed_of(self.seed, "dropout", epoch, self.worker.rank))
        batches = shuffled_batches(len(self.graphs.train), self.settings.batch_size, self.seed, epoch)
        batches = own_share(batches, self.worker.rank, self.worker.world)
        if not batches:
            raise TrainingError("there are no training graphs: bring more labelled scans")
        self.model.train()
        total = 0.0
        for number, batch in enumerate(batches):
            total += self._step(batch, epoch, number)
            on_batch(number + 1, len(batches))
        row = {
            "epoch": epoch,
            "loss": total / max(1, len(batches)),
            "validation_map": self.worker.agree(self.validate()),
        }
        self.state.add(row, score=row["validation_map"])
        return row

    def _step(self, which: Indices, epoch: int, number: int) -> float:
        batch, targets = gather(self.graphs.train, which, self.graphs.vectors_nd, self.worker.device)
        draws = torch.Generator(self.worker.device)
        draws.manual_seed(seed_of(self.seed, "drop-edge", epoch, number, self.worker.rank))
        logits = self.model(batch, draws)
        loss = focal_loss(logits, targets, batch.mask_bn, self.settings.focal_alpha, self.settings.focal_gamma)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} in epoch {epoch}, batch {number}: lower reranker.learning_rate"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return float(loss.item())

    def validate(self) -> float:
        """Reranked MAP of the validation graphs."""
        scores = score_graphs(
            self.reranker, self.graphs.validation, self.graphs.vectors_nd, self.settings.batch_size, self.worker.device
        )
        order = rerank_order(scores)
        return mean_average_precision(np.take_along_axis(self.graphs.validation.relevant_qn, order, 1))
