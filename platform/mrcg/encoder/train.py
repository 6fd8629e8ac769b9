"""Training of the encoder, one epoch at a time; a Ray worker or a notebook drives it (DESIGN §3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mrcg.config import EncoderSettings
from mrcg.encoder.batches import Indices, augment, learning_rate, own_share, shuffled_batches, triplet_batches
from mrcg.encoder.losses import batch_all_triplet_loss, joint_loss, triplet_loss
from mrcg.encoder.model import Encoder, load_pretrained, to_input
from mrcg.encoder.spec import EncoderSpec
from mrcg.errors import TrainingError
from mrcg.evaluation.metrics import mean_average_precision
from mrcg.hashing import seed_of
from mrcg.imaging.slices import Grey
from mrcg.training import TrainingState, Worker


@dataclass(frozen=True)
class LabelledImages:
    """Images that training sees: (n, s, s) grey levels, (n,) class numbers, (n,) groups."""

    pixels: Grey
    labels: Indices
    groups: list[str]


def new_encoder(
    settings: EncoderSettings, classes: tuple[str, ...], seed: int, weights: dict[str, Tensor] | None
) -> Encoder:
    """An encoder with seeded branches and, where given, a pretrained trunk; frozen as settings say."""
    torch.manual_seed(seed_of(seed, "encoder"))
    encoder = Encoder(EncoderSpec.of(settings, classes))
    if weights is not None:
        load_pretrained(encoder, weights)
    if settings.freeze == "convolutions":
        encoder.trunk.requires_grad_(False)
    return encoder


class EncoderTrainer:
    """Trains an encoder and keeps the weights with the best validation MAP.

    Args:
        encoder: trained in place, already on the worker's device.
        settings: of the encoder.
        seed: of the run; every draw follows from it, the epoch and the rank.
        train: what is learned from.
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
        self.model = wrap(encoder)
        trainable = [p for p in encoder.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trainable, lr=settings.learning_rate)
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
        if not batches:
            raise TrainingError("no class has two training images: there is no triplet to learn from")
        sums = np.zeros(3)
        self.model.train()
        if self.settings.freeze == "convolutions":
            self.encoder.trunk.eval()
        for number, batch in enumerate(batches):
            rate = learning_rate(
                self.settings.schedule, self.settings.learning_rate, epoch * len(batches) + number,
                self.settings.epochs * len(batches),
            )  # fmt: skip
            sums += self._step(batch, epoch, number, rate)
            on_batch(number + 1, len(batches))
        loss, triplet, cross_entropy = (sums / max(1, len(batches))).tolist()
        row = {
            "epoch": epoch,
            "loss": loss,
            "triplet": triplet,
            "cross_entropy": cross_entropy,
            "validation_map": self.worker.agree(self.validate()),
        }
        self.state.add(row, score=row["validation_map"])
        return row

    def _batches(self, epoch: int) -> list[Indices]:
        if self.settings.mining == "explicit":
            batches = triplet_batches(self.train.labels, self.settings.batch_size, self.seed, epoch)
        else:
            batches = shuffled_batches(len(self.train.labels), self.settings.batch_size, self.seed, epoch)
        return own_share(batches, self.worker.rank, self.worker.world)

    def _step(self, batch: Indices, epoch: int, number: int, rate: float) -> tuple[float, float, float]:
        device, settings = self.worker.device, self.settings
        flat = batch.T.reshape(-1)  # explicit triplets: all anchors, all positives, all negatives
        grey = torch.from_numpy(self.train.pixels[flat]).to(device)
        labels = torch.from_numpy(self.train.labels[flat]).to(device)
        if settings.augment:
            generator = torch.Generator(device).manual_seed(
                seed_of(self.seed, "augment", epoch, number, self.worker.rank)
            )
            grey = augment(grey, generator)
        embeddings, logits = self.model(to_input(grey))
        if settings.mining == "explicit":
            anchor, positive, negative = embeddings.chunk(3)
            triplet = triplet_loss(anchor, positive, negative, settings.margin)
        else:
            triplet = batch_all_triplet_loss(embeddings, labels, settings.margin)
        if settings.divide_by_margin:
            triplet = triplet / settings.margin
        loss = joint_loss(triplet, logits, labels, settings.classification_weight)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} in epoch {epoch}, batch {number}: lower encoder.learning_rate"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.item(), triplet.item(), loss.item() - triplet.item()

    def validate(self) -> float:
        """MAP among the validation images, each the query of all others but its group; 0 where there are none."""
        if not len(self.validation.labels):
            return 0.0
        vectors = embed_pixels(self.encoder, self.validation.pixels, self.settings.batch_size, self.worker.device)
        return leave_one_out_map(vectors, self.validation.labels, self.validation.groups)


def embed_pixels(
    encoder: Encoder, pixels_nss: Grey, batch_size: int, device: str
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """(n, s, s) grey levels -> (n, d) float32 embeddings, without gradients."""
    encoder.eval()
    out: list[Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(pixels_nss), batch_size):
            grey = torch.tensor(
                pixels_nss[start : start + batch_size], device=device
            )  # a copy: Ray's arrays are read-only
            out.append(encoder(to_input(grey))[0].float().cpu())
    if not out:
        return np.empty((0, encoder.spec.embedding_dim), dtype=np.float32)
    vectors: np.ndarray[tuple[int, int], np.dtype[np.float32]] = torch.cat(out).numpy()
    return vectors


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
