"""Encoder training, one epoch at a time; driven by a Ray worker or a notebook (docs/design.md#training)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from mrcg.arrays import Fp32Vectors
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
from mrcg.encoder.whitening import fit_whitening, folded
from mrcg.errors import TrainingError
from mrcg.hashing import draw, seed_of
from mrcg.metrics.ranking import mean_average_precision
from mrcg.training.batches import Indices, shuffled_batches, worker_share
from mrcg.training.block_cache import ArrayRows, SelectedRows
from mrcg.training.state import LossSum, TrainingState, Worker

#: Image ids that an error message names.
MAX_IDS_IN_MESSAGE = 8
#: Training images that whitening is fitted on, at most.
MAX_FIT_IMAGES = 4096


@dataclass(frozen=True)
class LabelledImages:
    """Labelled images for training or validation.

    Attributes:
        ids: (n,) image ids.
        labels: (n,) class numbers.
        groups: (n,) groups.
        pixels: (n, s, s) grey levels; may be memory-mapped from disk. Not used where there are features.
        features: stored features of a frozen trunk, (n, f) for each view; empty if the trunk runs in every epoch.
    """

    ids: Sequence[str]
    labels: Indices
    groups: Sequence[str]
    pixels: ArrayRows
    features: tuple[ArrayRows, ...] = ()


def new_encoder(
    settings: EncoderSettings, classes: tuple[str, ...], seed: int, weights: dict[str, Tensor] | None
) -> Encoder:
    """Return an encoder with seeded initial weights, pretrained ``weights`` if given, and frozen as settings say.

    Raises:
        SettingsError: the backbone is unknown or unsuitable, or has fewer modules than are to be frozen.
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
        settings: settings of the encoder.
        seed: seed of the run; every random draw follows from it, the epoch and the rank.
        train: training images; with ``features`` only the branches are run.
        validation: images that the best epoch is chosen on; if empty, the last epoch is kept.
        worker: this process among the data-parallel workers.
        wrap: wraps a model for data-parallel training.

    Raises:
        TrainingError: there are too few training images to whiten embeddings with.
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
        if settings.whiten and len(train.labels) <= settings.whiten:
            raise TrainingError(
                f"encoder.whiten = {settings.whiten} needs more than {settings.whiten} training scans, and there are "
                f"{len(train.labels)}: lower it or add labelled scans"
            )
        self.encoder = encoder
        self.settings = settings
        self.seed = seed
        self.train = train
        self.validation = validation
        self.worker = worker
        self.model = wrap(encoder.branches if train.features else encoder)
        trainable = [p for p in encoder.parameters() if p.requires_grad]
        # Without weight decay this is Adam, as in the paper. Fused, a step needs no memory of the size of the weights.
        self.optimizer = torch.optim.AdamW(
            trainable, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.state = TrainingState(encoder, self.optimizer)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or ``encoder.patience`` epochs have passed since the best one (0: never)."""
        epochs, patience = len(self.state.history), self.settings.patience
        return epochs >= self.settings.epochs or (patience > 0 and epochs - 1 - self.state.best_epoch >= patience)

    def run_epoch(self, on_batch: Callable[[int, int], None]) -> dict[str, float]:
        """Train for one pass over the training images, then validate.

        Args:
            on_batch: called after each batch with (batches done, batches of the epoch).

        Returns:
            The epoch's row of the history.

        Raises:
            TrainingError: the loss is not finite, no triplet can be formed, or no batch has rows for every worker.
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
        # Gradients take as much memory as the weights, and nobody needs them before the next step.
        self.optimizer.zero_grad(set_to_none=True)
        metric, cross_entropy = (self.worker.total(sums) / (len(batches) * self.worker.world)).tolist()
        row = {
            "epoch": epoch,
            "loss": metric + self.settings.classification_weight * cross_entropy,
            self.settings.loss: metric,
            "cross_entropy": cross_entropy,
            "validation_map": self.worker.broadcast(self.validate()),
        }
        self.state.add(row, score=row["validation_map"] if self.settings.keep == "best" else None)
        return row

    def _batches(self, epoch: int) -> list[Indices]:
        settings, labels = self.settings, self.train.labels
        if settings.mining == "explicit":
            # A row holds three images, so one row is enough for BatchNorm.
            batches = triplet_batches(labels, settings.batch_size, self.seed, epoch)
            if not batches:
                raise TrainingError(
                    "no triplet can be formed: training needs a class with two images and an image of another class; "
                    "add labelled scans"
                )
            return self._worker_share(batches, 1)
        if settings.sampler == "class_balanced":
            batches = class_balanced_batches(labels, settings.batch_size, settings.images_per_class, self.seed, epoch)
        else:
            batches = shuffled_batches(len(labels), settings.batch_size, self.seed, epoch)
        return self._worker_share(batches, 2)

    def _worker_share(self, batches: list[Indices], min_rows: int) -> list[Indices]:
        world = self.worker.world
        share = worker_share(batches, self.worker.rank, world, min_rows)
        if not share:
            raise TrainingError(
                f"no batch has {min_rows * world} rows ({min_rows} for each of {world} workers): "
                f"raise encoder.batch_size (now {self.settings.batch_size}) or lower compute.encoder_workers"
            )
        return share

    def _step(self, batch: Indices, epoch: int, number: int, rate: float) -> Tensor:
        flat = batch.T.reshape(-1)  # explicit triplets: all anchors, then all positives, then all negatives
        embeddings, logits = self.model(self._inputs(flat, epoch, number))
        labels = torch.from_numpy(self.train.labels[flat]).to(self.worker.device)
        metric = self._metric_loss(embeddings, labels)
        cross_entropy = classification_loss(logits, labels)
        metric_mean = self.worker.mean(metric)
        if self.settings.divide_by_margin:
            metric_mean = metric_mean / self.settings.margin
        cross_entropy_mean = self.worker.mean(cross_entropy)
        # λ = 0 is the Siamese network: its classification branch is not trained, and 0 * NaN or 0 * inf would be NaN.
        loss = metric_mean
        if self.settings.classification_weight:
            loss = loss + self.settings.classification_weight * cross_entropy_mean
        if not torch.isfinite(loss):
            raise TrainingError(self._not_finite_message(loss, flat, epoch, number))
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
        anchors = slice(None)
        if settings.gather:
            embeddings, anchors = self.worker.gather(embeddings)
            labels, _ = self.worker.gather(labels)
        if settings.loss == "contrastive":
            return contrastive_loss(embeddings, labels, settings.margin, anchors)
        return mined_triplet_loss(embeddings, labels, settings.margin, settings.mining, anchors)

    def _not_finite_message(self, loss: Tensor, rows: Indices, epoch: int, number: int) -> str:
        ids = [self.train.ids[row] for row in dict.fromkeys(rows.tolist())]
        hidden = len(ids) - MAX_IDS_IN_MESSAGE
        images = ", ".join(ids[:MAX_IDS_IN_MESSAGE]) + (f" and {hidden} more" if hidden > 0 else "")
        return (
            f"the loss is {loss.item()} in epoch {epoch}, batch {number} (images {images}): "
            "lower encoder.learning_rate, or check these images"
        )

    def validate(self) -> float:
        """Return the leave-one-out MAP of the validation images, see ``leave_one_out_map``; 0 if there are none."""
        if not len(self.validation.labels):
            return 0.0
        size, device = self.settings.batch_size, self.worker.device
        if self.validation.features:
            vectors = embed_features(self.encoder, self.validation.features[0], size, device)
        else:
            vectors = embed_pixels(self.encoder, self.validation.pixels, size, device)
        return leave_one_out_map(vectors, self.validation.labels, list(self.validation.groups))

    def result(self) -> tuple[EncoderSpec, bytes]:
        """Return the trained encoder: its architecture, and its best weights as safetensors bytes.

        With ``encoder.whiten`` they are whitened, and the encoder of this trainer is left with the best weights.
        """
        weights, spec = self.state.best_weights(), self.encoder.spec
        if not self.settings.whiten:
            return spec, weights
        tensors = safetensors.torch.load(weights)
        self.encoder.load_state_dict(tensors)
        spec, tensors = folded(spec, tensors, fit_whitening(self._fit_vectors(), self.settings.whiten))
        return spec, safetensors.torch.save(tensors)

    def _fit_vectors(self) -> Fp32Vectors:
        """Return the embeddings of training images as they are, without augmentation."""
        ids, size, device = self.train.ids, self.settings.batch_size, self.worker.device
        drawn = sorted(range(len(ids)), key=lambda row: draw(self.seed, "whitening", ids[row]))[:MAX_FIT_IMAGES]
        rows = np.array(sorted(drawn))
        if len(self.train.pixels):
            return embed_pixels(self.encoder, SelectedRows(self.train.pixels, rows), size, device)
        return embed_features(self.encoder, SelectedRows(self.train.features[0], rows), size, device)


def leave_one_out_map(
    vectors_nd: np.ndarray[tuple[int, int], np.dtype[np.float32]], labels: Indices, groups: list[str], depth: int = 50
) -> float:
    """Return the MAP@depth with every image as the query against all images outside its group."""
    x = torch.from_numpy(vectors_nd)
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    names = np.array(groups)
    distances[names[:, None] == names[None, :]] = np.inf
    order = np.argsort(distances, axis=1, kind="stable")[:, :depth]
    relevant = (labels[order] == labels[:, None]) & np.isfinite(np.take_along_axis(distances, order, axis=1))
    return mean_average_precision(relevant)
