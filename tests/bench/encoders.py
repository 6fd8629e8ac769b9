"""What else an encoder could be trained on: each way trained and measured on the scans and the split of reports.

::

    python -m tests.bench.encoders --store store --reports VERSION,VERSION --again instance,224 --weights FILE --out FILE

Each way is the training of the report's encoder with one thing changed, from the same seed, in this process. It is
measured as trained, with mirrored views, whitened, and with both, with and without an appearance part. Gains of a way are
over the recipe's training with vectors of the same form; gains of a form are over the vectors that the report's recipe
has. All ways are tried on the first report, those of ``--again`` on the others.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from mrcg.config.settings import AppearanceSettings, EncoderSettings
from mrcg.encoder.embedder import embed_pixels
from mrcg.encoder.losses import active_terms, squared_distances
from mrcg.encoder.trainer import EncoderTrainer, LabelledImages, new_encoder
from mrcg.hashing import sha256
from mrcg.storage.store import Store
from mrcg.training.batches import Indices
from mrcg.training.state import LossSum
from tests.bench.vector_figures import Base, Scans, Vectors

COMPONENTS, BATCH = 64, 64
#: Weights of the appearance part that are tried; the last one is that of the recipe `mobilenet`.
WEIGHTS = (0.25, 0.5, 1.0)
#: The form of the recipe's vectors.
OWN_FORM = f"as trained, appearance {WEIGHTS[-1]:g}"


class Instance(EncoderTrainer):
    """A term beside that of the class: a scan is nearer to itself under changes than to others of its class."""

    #: Margin among scans of a class relative to that among classes, and weight of the term.
    margin, weight = 0.2, 0.5

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        assert self.settings.augment, "two views of a scan would be equal"

    def _batches(self, epoch: int) -> list[Indices]:
        # Augmentation draws each row anew, so the two halves are two views of the same scans.
        return [np.concatenate([batch, batch]) for batch in super()._batches(epoch)]

    def _metric_loss(self, embeddings: Tensor, labels: Tensor) -> LossSum:
        half = len(labels) // 2
        distances = squared_distances(embeddings)
        to_itself = torch.cat([distances.diagonal(half), distances.diagonal(-half)])
        scan = torch.arange(half).repeat(2)
        others = (labels[:, None] == labels[None, :]) & (scan[:, None] != scan[None, :])
        violations = (to_itself[:, None] - distances + self.margin * self.settings.margin)[others]
        both = super()._metric_loss(embeddings, labels).mean() + self.weight * active_terms(violations).mean()
        return LossSum(both, torch.ones(()))


class TwoViews(Instance):
    """Two views of each scan in a batch, and no term for it: what the instance term is compared with."""

    weight = 0.0


class SmallMarginInside(EncoderTrainer):
    """Triplets inside a class, too: near-identical thumbnails are nearer than others of the class, by a small margin."""

    margin, weight, near = 0.1, 0.5, 0.1

    def _metric_loss(self, embeddings: Tensor, labels: Tensor) -> LossSum:
        distances, likeness = squared_distances(embeddings), self.likeness
        same = (labels[:, None] == labels[None, :]) & ~torch.eye(len(labels), dtype=torch.bool)
        nearer = likeness[:, :, None] + self.near < likeness[:, None, :]
        valid = same[:, :, None] & same[:, None, :] & nearer
        violations = (distances[:, :, None] - distances[:, None, :] + self.margin * self.settings.margin)[valid]
        both = super()._metric_loss(embeddings, labels).mean() + self.weight * active_terms(violations).mean()
        return LossSum(both, torch.ones(()))

    def _inputs(self, rows: Indices, epoch: int, number: int) -> Tensor:
        from mrcg.encoder.appearance import thumbnails

        small = torch.from_numpy(thumbnails(self.train.pixels[rows]))
        # Half the mean squared difference: one minus the correlation.
        self.likeness = squared_distances(small) / (2 * small.shape[1])
        return super()._inputs(rows, epoch, number)


class Averaged(EncoderTrainer):
    """The mean of the weights of the last epochs, with those of BatchNorm's statistics."""

    last = 5

    def run_epoch(self, on_batch: Any) -> dict[str, float]:
        if not self.state.history:
            self.mean = AveragedModel(self.encoder, use_buffers=True)
        row = super().run_epoch(on_batch)
        if row["epoch"] >= self.settings.epochs - self.last:
            self.mean.update_parameters(self.encoder)
        if self.finished:
            self.encoder.load_state_dict(self.mean.module.state_dict())
        return row


class Proxies(EncoderTrainer):
    """A learned place for each class instead of triplets: cross-entropy of the distances between directions."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        spec = self.encoder.spec
        # Only directions count, so small numbers move fast at the same learning rate.
        self.places = nn.Parameter(0.01 * torch.randn(len(spec.classes), spec.embedding_dim))
        self.optimizer.add_param_group({"params": [self.places], "lr": 0.0})

    def _metric_loss(self, embeddings: Tensor, labels: Tensor) -> LossSum:
        distances = torch.cdist(functional.normalize(embeddings), functional.normalize(self.places)).square()
        total = functional.cross_entropy(-10 * distances, labels, reduction="sum")
        # The caller divides by the margin.
        return LossSum(total * self.settings.margin, torch.tensor(len(labels)))


class GeneralisedMean(nn.Module):
    """GeM pooling: the third root of the mean of third powers."""

    def forward(self, x_bchw: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(x_bchw.clamp_min(1e-6).pow(3), 1).pow(1 / 3)


class Pooled(EncoderTrainer):
    """Generalised-mean pooling instead of the average."""

    def __init__(self, encoder: Any, *arguments: Any) -> None:
        encoder.pool = GeneralisedMean()
        super().__init__(encoder, *arguments)


class LabelNoise(EncoderTrainer):
    """After half the epochs, training goes on without the scans whose label the encoder itself doubts most."""

    share = 0.03

    def run_epoch(self, on_batch: Any) -> dict[str, float]:
        row = super().run_epoch(on_batch)
        if int(row["epoch"]) + 1 == self.settings.epochs // 2:
            self._drop_doubted()
        return row

    def _drop_doubted(self) -> None:
        self.encoder.eval()
        x = embed_pixels(self.encoder, self.train.pixels, BATCH, "cpu")
        distances = squared_distances(torch.from_numpy(x)).fill_diagonal_(torch.inf)
        near = distances.topk(10, largest=False).indices.numpy()
        agree = (self.train.labels[near] == self.train.labels[:, None]).mean(1)
        kept = np.sort(np.argsort(-agree, kind="stable")[: round(len(agree) * (1 - self.share))])
        names = [(self.train.ids[row], self.train.groups[row]) for row in kept.tolist()]
        self.train = LabelledImages(
            [name for name, _ in names], self.train.labels[kept], [group for _, group in names], self.train.pixels[kept]
        )


@dataclass(frozen=True)
class Way:
    """A training.

    Attributes:
        title: in words.
        trainer: what does it.
        settings: that differ from the report's.
        longer: factor of the epochs.
        directions: whether the lengths of its vectors mean nothing.
    """

    title: str
    trainer: type[EncoderTrainer] = EncoderTrainer
    settings: Mapping[str, Any] | None = None
    longer: int = 1
    directions: bool = False


WAYS: Mapping[str, Way] = {
    "recipe": Way("as in the recipe"),
    "instance": Way("the scan itself under changes, beside the class", Instance),
    "views": Way("two views of each scan in a batch", TwoViews),
    "inside": Way("a small margin inside a class, by thumbnails", SmallMarginInside),
    "averaged": Way("mean weights of the last five epochs", Averaged),
    "proxies": Way("a learned place for each class, no triplets", Proxies, directions=True),
    "pooled": Way("generalised-mean pooling", Pooled),
    "noise": Way("without the most doubted labels, from half the epochs on", LabelNoise),
    "balanced": Way("balanced sampling", settings={"sampler": "class_balanced"}),
    "hard": Way("hard triplets", settings={"mining": "hard"}),
    "224": Way("224 pixels", settings={"input_size": 224}),
    "longer": Way("twice the epochs", longer=2),
}  # fmt: skip


def labelled(scans: Scans, chosen: Any, classes: list[str], ids: list[str]) -> LabelledImages:
    """Some scans of the gallery as training reads them."""
    rows = scans.rows["gallery"][chosen]
    return LabelledImages(
        [ids[row] for row in rows.tolist()],
        np.array([classes.index(label) for label in scans.labels[rows].tolist()]),
        scans.groups[rows].tolist(),
        scans.pixels["gallery"][chosen],
    )


def trained(store: Store, report: str, way: Way, chosen: argparse.Namespace) -> tuple[EncoderTrainer, Scans, float]:
    """Train an encoder in a way, and return its trainer, the scans, and the seconds."""
    inputs = store.manifest("reports", report).inputs
    manifest = store.manifest("encoders", store.manifest("embeddings", inputs["embeddings"]).inputs["encoders"])
    seed, recorded = manifest.settings["seed"], manifest.settings["encoder"]
    digest = sha256(chosen.weights.read_bytes()) if chosen.weights else "none"
    assert recorded["weights"] == digest, "the report's encoder began with other weights: see --weights"
    recorded = {**recorded, **(way.settings or {}), "whiten": 0, "mirror": False}
    recorded["epochs"] = way.longer * (chosen.epochs or recorded["epochs"])
    settings = EncoderSettings.model_validate(recorded)
    # The mean of two embeddings is that of the mean features of a linear head; the last epoch is what is measured.
    assert (settings.head, settings.keep) == ("pooled", "last") or chosen.epochs, settings
    scans = Scans.of(store, report, settings.input_size)
    classes = sorted({label for label in scans.labels.tolist() if label is not None})
    ids = [str(row) for row in range(len(scans.labels))]
    weights = safetensors.torch.load_file(chosen.weights) if chosen.weights else None
    encoder = new_encoder(settings, tuple(classes), seed, weights)
    parts = [labelled(scans, part, classes, ids) for part in (~scans.validation, scans.validation)]
    trainer, started = way.trainer(encoder, settings, seed, *parts), time.monotonic()
    while not trainer.finished:
        trainer.run_epoch(lambda done, total: None)
    return trainer, scans, time.monotonic() - started


def forms_of_vectors(scans: Scans, plain: Mapping[str, Vectors], both: Mapping[str, Vectors]) -> dict[str, Any]:
    """The vectors in each form, first in that of the recipe."""
    bare = {
        "as trained": plain,
        "mirrored": both,
        "whitened": scans.whitened(plain, COMPONENTS),
        "mirrored, whitened": scans.whitened(both, COMPONENTS),
    }
    extended = {
        f"{form}, appearance {weight:g}": scans.with_appearance(vectors, AppearanceSettings(weight=weight))
        for form, vectors in bare.items()
        for weight in WEIGHTS
    }
    return {OWN_FORM: extended[OWN_FORM], **bare, **extended}


def measure(
    store: Store, report: str, name: str, chosen: argparse.Namespace, bases: dict[str, Base]
) -> list[dict[str, Any]]:
    """Train in a way and measure its vectors; ``bases`` are the recipe's in each form."""
    way = WAYS[name]
    trainer, scans, seconds = trained(store, report, way, chosen)
    encoder = trainer.encoder.eval()

    def embed(pixels: Any) -> Vectors:
        vectors = embed_pixels(encoder, pixels, BATCH, "cpu")
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if way.directions else vectors

    plain, mirrored = scans.embedded(embed), scans.mirrored(embed)
    both = {part: (plain[part] + mirrored[part]) / 2 for part in plain}
    told = {"way": name, "what": way.title, "report": report, "seed": trainer.seed, "seconds": seconds}
    rows = []
    for form, vectors in forms_of_vectors(scans, plain, both).items():
        over = {"gain": bases.setdefault(form, {}), "gain_of_form": bases[OWN_FORM]}
        rows.append({**told, "vectors": form, **scans.figures(vectors, over)})
    return rows


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--reports", required=True, help="versions; on the first, all ways of --ways are tried")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--again", default="", help="ways that are tried on the other reports, too")
    parser.add_argument("--weights", type=Path, help="initial weights of the reports' encoders; none if drawn")
    parser.add_argument("--epochs", type=int, help="instead of those of the report's encoder, to try this file")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    store, rows = Store(chosen.store), list[dict[str, Any]]()
    for number, report in enumerate(chosen.reports.split(",")):
        names = (chosen.ways if number == 0 else chosen.again).split(",")
        bases: dict[str, Base] = {}
        for name in dict.fromkeys(["recipe", *filter(None, names)]):
            rows += measure(store, report, name, chosen, bases)
            chosen.out.write_text(json.dumps(rows, indent=1) + "\n")
            # Ways are chosen on the validation part, so that alone is shown.
            for row in (row for row in rows if (row["way"], row["report"]) == (name, report)):
                print(name, row["vectors"], row["validation_gain"], f"{row['validation_map']:.4f}", flush=True)


if __name__ == "__main__":
    main()
