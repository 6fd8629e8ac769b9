"""Training of the encoder, one epoch at a time; a Ray worker or a notebook drives it (DESIGN §3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mrcg.config.settings import EncoderSettings
from mrcg.encoder.augmentation import augment
from mrcg.encoder.embedder import embed_features, embed_pixels
from mrcg.encoder.losses import (
    classification_loss,
    contrastive_loss,
    explicit_contrastive_loss,
    mined_triplet_loss,
    triplet_loss,
)
from mrcg.encoder.model import Encoder, load_pretrained, to_input
from mrcg.encoder.samplers import class_balanced_batches, learning_rate, triplet_batches
from mrcg.encoder.spec import EncoderSpec
from mrcg.errors import TrainingError
from mrcg.hashing import seed_of
from mrcg.metrics.ranking import mean_average_precision
from mrcg.training.batches import Indices, own_share, shuffled_batches
from mrcg.training.block_cache import Rows
from mrcg.training.state import LossSum, TrainingState, Worker

IDS_NAMED = 8


@dataclass(frozen=True)
class LabelledImages:
    """Images that training sees.

    Attributes:
        ids: (n,) image ids.
        labels: (n,) class numbers.
        groups: (n,) groups.
        pixels: (n, s, s) grey levels; may lie on disk.
        features: views of what a frozen trunk made of the pixels, (n, f) each; none where it is run each time.
    """

    ids: Sequence[str]
    labels: Indices
    groups: Sequence[str]
    pixels: Rows
    features: tuple[Rows, ...] = ()


def new_encoder(
    settings: EncoderSettings, classes: tuple[str, ...], seed: int, weights: dict[str, Tensor] | None
) -> Encoder:
    """An encoder with seeded branches and, where given, a pretrained trunk; frozen as settings say.

    Raises:
        SettingsError: there is no such backbone, or less of it than shall be frozen.
        WeightsError: the weights are of another architecture.
    """
    torch.manual_seed(seed_of(seed, "encoder"))
    encoder = Encoder(EncoderSpec.of(settings, classes))
    if weights is not None:
        load_pretrained(encoder, weights)
    encoder.freeze(settings.freeze)
    return encoder


class EncoderTrainer:
    """Trains an encoder and keeps the weights with the best validation MAP.

    Args:
        encoder: trained in place, already on the worker's device.
        settings: of the encoder.
        seed: of the run; every draw follows from it, the epoch and the rank.
        train: what is learned from; with ``features`` only the branches are run.
        validation: what every choice looks at; may be empty, then the last epoch is kept.
        worker: this process among the workers.
        wrap: puts a model into its data-parallel form.
    """

    def __init__(
        self,
        encoder: Encoder,
        settings: EncoderSettings,
        seed: int,
        train: LabelledImages,
        validation: LabelledImages,
        worker: Worker = Worker(),
        wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    ) -> None:
        self.encoder = encoder
        self.settings = settings
        self.seed = seed
        self.train = train
        self.validation = validation
        self.worker = worker
        self.model = wrap(encoder.branches if train.features else encoder)
        trainable = [p for p in encoder.parameters() if p.requires_grad]
        # With no decay this is Adam, as the paper has it.
        self.optimizer = torch.optim.AdamW(trainable, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        self.state = TrainingState(encoder, self.optimizer)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or validation stopped getting better."""
        done, patience = len(self.state.history), self.settings.patience
        return done >= self.settings.epochs or (patience > 0 and done - 1 - self.state.best_epoch >= patience)

    def run_epoch(self, on_batch: Callable[[int, int], None]) -> dict[str, float]:
        """One pass over the training images, then validation.

        Args:
            on_batch: told (batches done, batches of the epoch) after each.

        Returns:
            The epoch's row of the history.

        Raises:
            TrainingError: the loss is not a number.
        """
        epoch = len(self.state.history)
        torch.manual_seed(seed_of(self.seed, "dropout", epoch, self.worker.rank))
        batches = self._batches(epoch)
        sums = torch.zeros(2)
        self.model.train()
        for number, batch in enumerate(batches):
            rate = learning_rate(
                self.settings.schedule, self.settings.learning_rate, epoch * len(batches) + number,
                self.settings.epochs * len(batches),
            )  # fmt: skip
            sums += self._step(batch, epoch, number, rate)
            on_batch(number + 1, len(batches))
        metric, cross_entropy = (self.worker.total(sums) / (len(batches) * self.worker.world)).tolist()
        row = {
            "epoch": epoch,
            "loss": metric + self.settings.classification_weight * cross_entropy,
            self.settings.loss: metric,
            "cross_entropy": cross_entropy,
            "validation_map": self.worker.agree(self.validate()),
        }
        self.state.add(row, score=row["validation_map"] if self.settings.keep == "best" else float(epoch))
        return row

    def _batches(self, epoch: int) -> list[Indices]:
        settings, labels = self.settings, self.train.labels
        if settings.mining == "explicit":
            # Three images a row: one row is enough for BatchNorm.
            batches = triplet_batches(labels, settings.batch_size, self.seed, epoch)
            if not batches:
                raise TrainingError("no class has two training images: there is no triplet to learn from")
            return self._own_share(batches, 1)
        if settings.sampler == "class_balanced":
            batches = class_balanced_batches(labels, settings.batch_size, settings.images_per_class, self.seed, epoch)
        else:
            batches = shuffled_batches(len(labels), settings.batch_size, self.seed, epoch)
        return self._own_share(batches, 2)

    def _own_share(self, batches: list[Indices], least: int) -> list[Indices]:
        own = own_share(batches, self.worker.rank, self.worker.world, least)
        if not own:
            raise TrainingError(
                f"no batch gives each of {self.worker.world} workers {least} of its {self.settings.batch_size} images: "
                "raise encoder.batch_size or lower compute.encoder_workers"
            )
        return own

    def _step(self, batch: Indices, epoch: int, number: int, rate: float) -> Tensor:
        flat = batch.T.reshape(-1)  # explicit triplets: all anchors, all positives, all negatives
        embeddings, logits = self.model(self._inputs(flat, epoch, number))
        labels = torch.from_numpy(self.train.labels[flat]).to(self.worker.device)
        metric = self._metric_loss(embeddings, labels)
        cross_entropy = classification_loss(logits, labels)
        metric_mean = self.worker.mean(metric)
        if self.settings.divide_by_margin:
            metric_mean = metric_mean / self.settings.margin
        cross_entropy_mean = self.worker.mean(cross_entropy)
        # λ = 0 is the Siamese network: its second branch learns nothing, and must not turn up as a NaN.
        loss = metric_mean
        if self.settings.classification_weight:
            loss = loss + self.settings.classification_weight * cross_entropy_mean
        if not torch.isfinite(loss):
            raise TrainingError(self._not_finite(loss, flat, epoch, number))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return torch.stack([metric_mean.detach(), cross_entropy_mean.detach()]).cpu()

    def _inputs(self, rows: Indices, epoch: int, number: int) -> Tensor:
        if self.train.features:
            view = self.train.features[epoch % len(self.train.features)]
            return torch.from_numpy(view[rows]).to(self.worker.device)
        grey = torch.from_numpy(self.train.pixels[rows]).to(self.worker.device)
        if self.settings.augment:
            grey = augment(grey, seed_of(self.seed, "augment", epoch, number, self.worker.rank))
        return to_input(grey)

    def _metric_loss(self, embeddings: Tensor, labels: Tensor) -> LossSum:
        settings = self.settings
        if settings.mining == "explicit":
            explicit = triplet_loss if settings.loss == "triplet" else explicit_contrastive_loss
            anchor, positive, negative = embeddings.chunk(3)
            return explicit(anchor, positive, negative, settings.margin)
        own = slice(None)
        if settings.gather:
            embeddings, own = self.worker.gather(embeddings)
            labels, _ = self.worker.gather(labels)
        if settings.loss == "contrastive":
            return contrastive_loss(embeddings, labels, settings.margin, own)
        return mined_triplet_loss(embeddings, labels, settings.margin, settings.mining, own)

    def _not_finite(self, loss: Tensor, rows: Indices, epoch: int, number: int) -> str:
        ids = [self.train.ids[row] for row in dict.fromkeys(rows.tolist())]
        named = ", ".join(ids[:IDS_NAMED]) + (f" and {len(ids) - IDS_NAMED} more" if len(ids) > IDS_NAMED else "")
        return (
            f"the loss is {loss.item()} in epoch {epoch}, batch {number} (images {named}): "
            "lower encoder.learning_rate, or look at these images"
        )

    def validate(self) -> float:
        """MAP among the validation images, each the query of all others but its group; 0 where there are none."""
        if not len(self.validation.labels):
            return 0.0
        size, device = self.settings.batch_size, self.worker.device
        if self.validation.features:
            vectors = embed_features(self.encoder, self.validation.features[0], size, device)
        else:
            vectors = embed_pixels(self.encoder, self.validation.pixels, size, device)
        return leave_one_out_map(vectors, self.validation.labels, list(self.validation.groups))


def leave_one_out_map(
    vectors_nd: np.ndarray[tuple[int, int], np.dtype[np.float32]], labels: Indices, groups: list[str], depth: int = 50
) -> float:
    """MAP@depth of every image against all others that are not of its group."""
    x = torch.from_numpy(vectors_nd)
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    names = np.array(groups)
    distances[names[:, None] == names[None, :]] = np.inf
    order = np.argsort(distances, axis=1, kind="stable")[:, :depth]
    relevant = (labels[order] == labels[:, None]) & np.isfinite(np.take_along_axis(distances, order, axis=1))
    return mean_average_precision(relevant)


def load_weights(data: bytes | None) -> dict[str, Tensor] | None:
    """Tensors of safetensors bytes."""
    if data is None:
        return None
    import safetensors.torch

    return safetensors.torch.load(data)
