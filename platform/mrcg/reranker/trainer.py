"""Training of the reranker on finished embeddings, one epoch at a time (DESIGN §3)."""

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
from mrcg.metrics.ranking import mean_average_precision
from mrcg.reranker.graph_table import GraphTable
from mrcg.reranker.losses import graph_loss
from mrcg.reranker.model import Reranker
from mrcg.reranker.scorer import gather, rerank_order, score_graphs
from mrcg.reranker.spec import RerankerSpec
from mrcg.training.batches import Indices, own_share, shuffled_batches
from mrcg.training.state import TrainingState, Worker

#: Graphs that the scale of the features starts from.
SCALE_GRAPHS = 128
#: Queries that a message names.
QUERIES_NAMED = 8
#: What to do where there is nothing to learn from, by ``reranker.graphs``.
NO_GRAPHS = {
    "train": "there are no training graphs: bring more labelled scans",
    "held_out": "no labelled scan is held out: raise split.held_out_fraction",
    "cross_fit": "the folds have no graphs: bring more labelled scans or lower reranker.folds",
}


@dataclass(frozen=True)
class TrainingGraphs:
    """Graphs of training and validation queries (these may be none, then the last epoch is kept).

    Their features are gathered from ``vectors_nd``: (rows, d) stored embeddings of the whole gallery, and behind them
    those of cross-fitted encoders where there are any.
    """

    train: GraphTable
    validation: GraphTable
    vectors_nd: npt.NDArray[np.float16]


def new_reranker(settings: RerankerSettings, embedding_dim: int, seed: int, encoder_fingerprint: str) -> Reranker:
    """A reranker with seeded weights, for the embeddings of the encoder of this fingerprint."""
    torch.manual_seed(seed_of(seed, "reranker"))
    return Reranker(RerankerSpec.of(settings, embedding_dim, encoder_fingerprint))


def _optimizer(reranker: Reranker, settings: RerankerSettings) -> torch.optim.Optimizer:
    """Adam with its own, coupled L2 on the first graph layer alone (DESIGN §3, baselines)."""
    first = reranker.first_layer()
    chosen = {id(parameter) for parameter in first}
    rest = [parameter for parameter in reranker.parameters() if id(parameter) not in chosen]
    optimizer = torch.optim.Adam(rest, lr=settings.learning_rate)
    optimizer.add_param_group({"params": first, "weight_decay": settings.weight_decay_first})
    return optimizer


class RerankerTrainer:
    """Trains a reranker and keeps the weights with the best validation MAP, or the last ones.

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
        if reranker.spec.scale:
            # Before the wrap, which gives all workers the weights of the first.
            self._fit_scale()
        self.model = wrap(reranker)
        self.optimizer = _optimizer(reranker, settings)
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
        if not batches:
            raise TrainingError(NO_GRAPHS[self.settings.graphs])
        batches = own_share(batches, self.worker.rank, self.worker.world, least=1)
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
        row = {"epoch": epoch, "loss": loss, "validation_map": self.worker.agree(self.validate())}
        # Epochs count up: scored by their number, the last one always wins.
        self.state.add(row, score=float(epoch) if self.settings.keep == "last" else row["validation_map"])
        return row

    def _fit_scale(self) -> None:
        # The first graphs of the first epoch, not of the table: that may be sorted by class.
        for first in shuffled_batches(len(self.graphs.train), SCALE_GRAPHS, self.seed, 0)[:1]:
            batch, _ = gather(self.reranker, self.graphs.train, first, self.graphs.vectors_nd, self.worker.device)
            self.reranker.fit_scale(batch)

    def _step(self, which: Indices, epoch: int, number: int) -> Tensor:
        table, device = self.graphs.train, self.worker.device
        batch, targets = gather(self.reranker, table, which, self.graphs.vectors_nd, device)
        draws = torch.Generator(device)
        draws.manual_seed(seed_of(self.seed, "drop-edge", epoch, number, self.worker.rank))
        loss = self.worker.mean(graph_loss(self.settings, self.model(batch, draws), targets, batch.mask_bn))
        if not torch.isfinite(loss):
            named = ", ".join(str(row) for row in table.queries[which[:QUERIES_NAMED]].tolist())
            more = ", …" if len(which) > QUERIES_NAMED else ""
            raise TrainingError(
                f"the loss is {loss.item()} in epoch {epoch}, batch {number} (queries: gallery rows {named}{more}): "
                "lower reranker.learning_rate"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach().cpu()

    def validate(self) -> float:
        """Reranked MAP of the validation graphs."""
        scores = score_graphs(
            self.reranker, self.graphs.validation, self.graphs.vectors_nd, self.settings.batch_size, self.worker.device
        )
        order = rerank_order(scores)
        return mean_average_precision(np.take_along_axis(self.graphs.validation.relevant_qn, order, 1))
