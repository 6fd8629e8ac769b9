"""Reranker training on stored embeddings, one epoch at a time (docs/design.md#training)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mrcg.config.settings import RerankerSettings
from mrcg.errors import TrainingError
from mrcg.hashing import seed_of
from mrcg.metrics.order import BY_SCORE
from mrcg.metrics.ranking import mean_average_precision
from mrcg.reranker.graph_table import GraphTable
from mrcg.reranker.losses import graph_loss
from mrcg.reranker.model import Reranker
from mrcg.reranker.scorer import gather_batch, score_graphs
from mrcg.reranker.spec import RerankerSpec
from mrcg.training.batches import Indices, shuffled_batches, worker_share
from mrcg.training.state import TrainingState, Worker

#: Maximum number of graphs that the feature scale is initialised from.
SCALE_GRAPHS = 128
#: Queries that an error message names.
MAX_QUERIES_IN_MESSAGE = 8
#: Error message for missing training graphs, by ``reranker.graphs``.
NO_GRAPHS = {
    "train": "there are no training graphs: add more labelled scans",
    "held_out": "no labelled scan is held out: raise split.held_out_fraction",
    "cross_fit": "the folds have no graphs: add more labelled scans or lower reranker.folds",
}


@dataclass(frozen=True)
class TrainingGraphs:
    """Training and validation graphs, and the embeddings of their nodes.

    Attributes:
        train: graphs of the training queries.
        validation: graphs of the validation queries; if there are none, the last epoch is kept.
        vectors_nd: (rows, d) stored embeddings of all scans, followed by those of the cross-fitted encoders, if any.
    """

    train: GraphTable
    validation: GraphTable
    vectors_nd: npt.NDArray[np.float16]


def new_reranker(settings: RerankerSettings, embedding_dim: int, seed: int, encoder_fingerprint: str) -> Reranker:
    """Return a reranker with seeded initial weights for the embeddings of the encoder with this fingerprint."""
    torch.manual_seed(seed_of(seed, "reranker"))
    return Reranker(RerankerSpec.of(settings, embedding_dim, encoder_fingerprint))


def _optimizer(reranker: Reranker, settings: RerankerSettings) -> torch.optim.Optimizer:
    """Return Adam with its coupled L2 weight decay on the first graph layer only (docs/method.md#baselines)."""
    first = reranker.first_layer()
    first_ids = {id(parameter) for parameter in first}
    others = [parameter for parameter in reranker.parameters() if id(parameter) not in first_ids]
    optimizer = torch.optim.Adam(others, lr=settings.learning_rate)
    optimizer.add_param_group({"params": first, "weight_decay": settings.weight_decay_first})
    return optimizer


class RerankerTrainer:
    """Trains a reranker and keeps the weights of the epoch with the best validation MAP, or of the last epoch.

    Args:
        reranker: trained in place, already on the worker's device.
        settings: settings of the reranker.
        seed: seed of the run.
        graphs: graphs to train on and graphs to choose the best epoch on.
        worker: this process among the data-parallel workers.
        wrap: wraps a model for data-parallel training.
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
        if reranker.spec.scale:
            # Before `wrap`, which copies the first worker's weights to all workers.
            self._fit_scale()
        self.model = wrap(reranker)
        self.optimizer = _optimizer(reranker, settings)
        self.state = TrainingState(reranker, self.optimizer)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return len(self.state.history) >= self.settings.epochs

    def run_epoch(self, on_batch: Callable[[int, int], None]) -> dict[str, float]:
        """Train for one pass over the training graphs, then validate.

        Args:
            on_batch: called after each batch with (batches done, batches of the epoch).

        Returns:
            The epoch's row of the history.

        Raises:
            TrainingError: the loss is not finite, there are no graphs, or no batch has a graph for every worker.
        """
        epoch = len(self.state.history)
        torch.manual_seed(seed_of(self.seed, "dropout", epoch, self.worker.rank))
        batches = shuffled_batches(len(self.graphs.train), self.settings.batch_size, self.seed, epoch)
        if not batches:
            raise TrainingError(NO_GRAPHS[self.settings.graphs])
        batches = worker_share(batches, self.worker.rank, self.worker.world, min_rows=1)
        if not batches:
            raise TrainingError(
                f"no batch has a graph for each of {self.worker.world} workers: "
                "raise reranker.batch_size or lower compute.reranker_workers"
            )
        self.model.train()
        total = torch.zeros(1)
        for number, batch in enumerate(batches):
            total += self._step(batch, epoch, number)
            on_batch(number + 1, len(batches))
        loss = float(self.worker.total(total)) / (len(batches) * self.worker.world)
        row = {"epoch": epoch, "loss": loss, "validation_map": self.worker.broadcast(self.validate())}
        self.state.add(row, score=None if self.settings.keep == "last" else row["validation_map"])
        return row

    def _fit_scale(self) -> None:
        # Shuffled, not the first graphs of the table, which may be sorted by class.
        for indices in shuffled_batches(len(self.graphs.train), SCALE_GRAPHS, self.seed, 0)[:1]:
            batch, _ = gather_batch(
                self.reranker, self.graphs.train, indices, self.graphs.vectors_nd, self.worker.device
            )
            self.reranker.fit_scale(batch)

    def _step(self, indices: Indices, epoch: int, number: int) -> Tensor:
        table, device = self.graphs.train, self.worker.device
        batch, targets = gather_batch(self.reranker, table, indices, self.graphs.vectors_nd, device)
        generator = torch.Generator(device)
        generator.manual_seed(seed_of(self.seed, "drop-edge", epoch, number, self.worker.rank))
        loss = self.worker.mean(graph_loss(self.settings, self.model(batch, generator), targets, batch.mask_bn))
        if not torch.isfinite(loss):
            rows = ", ".join(str(row) for row in table.queries[indices[:MAX_QUERIES_IN_MESSAGE]].tolist())
            more = ", …" if len(indices) > MAX_QUERIES_IN_MESSAGE else ""
            raise TrainingError(
                f"the loss is {loss.item()} in epoch {epoch}, batch {number} (queries: gallery rows {rows}{more}): "
                "lower reranker.learning_rate"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach().cpu()

    def validate(self) -> float:
        """Return the MAP of the validation graphs after reranking."""
        scores = score_graphs(
            self.reranker, self.graphs.validation, self.graphs.vectors_nd, self.settings.batch_size, self.worker.device
        )
        validation = self.graphs.validation
        order = BY_SCORE.ranks(scores, validation.distances_qn, np.zeros(scores.shape, dtype=bool))
        return mean_average_precision(np.take_along_axis(self.graphs.validation.relevant_qn, order, 1))
