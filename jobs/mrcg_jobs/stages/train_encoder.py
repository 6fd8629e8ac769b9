"""Train the encoder with Ray Train.

Modules that import torchvision are imported on the workers only: the driver does not need it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from mrcg.config.settings import Config
from mrcg.corpus.features import StoredFeatures
from mrcg.corpus.reader import Corpus
from mrcg.corpus.splits import Split
from mrcg.encoder.spec import HISTORY, SPEC, WEIGHTS, fingerprint, spec_bytes
from mrcg.errors import TrainingError
from mrcg.hashing import seed_of
from mrcg.stages.counts import EncoderCounts
from mrcg.training.block_cache import ArrayRows, MappedRows, SelectedRows, blocks_of, make_block, map_blocks
from mrcg.training.state import Worker
from mrcg_jobs import initial_weights
from mrcg_jobs.job import Job, Outcome
from mrcg_jobs.ray_runtime.trainer import Trainer, TrainTask, Wrap, train

if TYPE_CHECKING:
    from mrcg.encoder.model import Encoder
    from mrcg.encoder.trainer import EncoderTrainer, LabelledImages

log = logging.getLogger(__name__)

Numbers = npt.NDArray[np.int64]


def run(job: Job) -> Outcome:
    """Train the encoder.

    Raises:
        WeightsError: the initial weights cannot be loaded or do not fit the architecture.
        TrainingError: there are scans of fewer than two classes to learn from, or the trainer cannot continue.
    """
    if job.step.fold is None:
        _warn_of_rare_classes(Corpus(job.inputs["corpus"]), Split(job.inputs["splits"]))
    initial_weights.hand_over(job)
    task = TrainTask(
        store=job.store.url,
        attempt=job.attempt.folder,
        inputs=dict(job.step.inputs),
        config=job.config,
        epochs=job.config.encoder.epochs,
        snapshots=job.config.encoder.snapshots,
        build=_build,
        save=_save,
        fold=job.step.fold,
    )
    compute = job.config.compute
    names = train(job, task, compute.encoder_workers, compute.encoder_workers_min)
    history = json.loads(job.store.read_bytes(f"{job.attempt.output}/{HISTORY}"))
    facts = json.loads(job.store.read_bytes(f"{job.attempt.output}/{SPEC}"))
    counts = EncoderCounts(
        epochs=len(history["epochs"]),
        best_epoch=history["best_epoch"],
        validation_map=history["epochs"][history["best_epoch"]]["validation_map"] if history["epochs"] else None,
        fingerprint=facts["fingerprint"],
    )
    return Outcome(counts, [job.attempt.entry(name) for name in names])


def _warn_of_rare_classes(corpus: Corpus, split: Split) -> None:
    """Warn of classes with too few training scans to learn; their scans are still embedded and searched."""
    labels = np.array([label or "" for label in corpus.labels], dtype=object)
    for name in corpus.classes:
        count = int((labels[split.fit] == name).sum())
        if count < 2:
            log.warning(
                "class %s has %s in the training part: its scans are searched, but the encoder cannot learn it",
                name,
                "1 scan" if count else "no scan",
            )


def _build(task: TrainTask, worker: Worker, wrap: Wrap) -> EncoderTrainer:
    from mrcg.encoder.trainer import EncoderTrainer, new_encoder

    config: Config = task.config
    corpus, split = Corpus(task.artefact("corpus")), Split(task.artefact("splits"))
    weights = initial_weights.handed_over(task.artefact("corpus").store, task.attempt)
    encoder = new_encoder(config.encoder, corpus.classes, config.seed, weights).to(worker.device)
    inputs = _Inputs(task, worker, corpus, encoder)
    learned = np.flatnonzero(split.seen(corpus.groups, task.fold, config.seed))
    fit = inputs.labelled(learned, "fit")
    if len(np.unique(fit.labels)) < 2:
        part = "the training part" if task.fold is None else f"the training part without {task.fold}"
        raise TrainingError(
            f"{part} has labelled scans of fewer than two classes: add labelled scans of other classes"
            + (" or lower reranker.folds" if task.fold is not None else "")
        )
    validation = inputs.labelled(np.flatnonzero(split.validation), "validation")
    return EncoderTrainer(encoder, config.encoder, config.seed, fit, validation, worker, wrap)


class _Inputs:
    """Inputs of all epochs: features of a frozen trunk where a stage has stored them, decoded and resized pixels else.

    Pixels and augmented views are computed once and stored as blocks in the attempt, so a resumed run reuses them.
    Workers divide the blocks among themselves and wait for each other.
    """

    def __init__(self, task: TrainTask, worker: Worker, corpus: Corpus, encoder: Encoder) -> None:
        self._attempt = task.attempt
        self._stored = StoredFeatures(task.artefact("features")) if "features" in task.inputs else None
        self._settings = task.config.encoder
        self._seed = task.config.seed
        self._worker = worker
        self._corpus = corpus
        self._encoder = encoder

    def labelled(self, rows: Numbers, part: str) -> LabelledImages:
        """Return some rows of the corpus with what training needs: ids, labels, groups, pixels and features."""
        from mrcg.encoder.trainer import LabelledImages

        classes, corpus = self._corpus.classes, self._corpus
        labels = [corpus.labels[row] for row in rows.tolist()]
        pixels, features = self._pixels_and_features(rows, part)
        return LabelledImages(
            corpus.scans["image_id"].take(rows).to_pylist(),
            np.array([classes.index(label) for label in labels if label is not None], dtype=np.int64),
            [corpus.groups[row] for row in rows.tolist()],
            pixels,
            features,
        )

    def _pixels_and_features(self, rows: Numbers, part: str) -> tuple[ArrayRows, tuple[ArrayRows, ...]]:
        settings = self._settings
        if self._stored is None:
            return self._pixels(rows, part), ()
        # Validation images are never augmented.
        if settings.augment and part == "fit" and len(rows):
            pixels = self._pixels(rows, part)
            return pixels, tuple(self._view(pixels, view) for view in range(settings.cached_views))
        return self._no_pixels(), (SelectedRows(self._stored.of_corpus(self._corpus), rows),)

    def _no_pixels(self) -> npt.NDArray[np.uint8]:
        side = self._settings.input_size
        return np.empty((0, side, side), dtype=np.uint8)

    def _pixels(self, rows: Numbers, part: str) -> ArrayRows:
        side = self._settings.input_size
        if not len(rows):
            return self._no_pixels()

        def decode(block: range) -> npt.NDArray[Any]:
            return self._corpus.pixels(rows[block.start : block.stop].tolist(), side)

        return self._cached(f"pixels-{part}", len(rows), side * side, decode)

    def _view(self, pixels: ArrayRows, view: int) -> MappedRows:
        """Return the features of the training images, augmented in one of several ways."""
        from mrcg.encoder.embedder import trunk_features

        size, device = self._settings.batch_size, self._worker.device
        width = trunk_features(self._encoder, pixels[:1], 1, device).nbytes

        def run_trunk(block: range) -> npt.NDArray[Any]:
            seed = seed_of(self._seed, "view", view, block.start)
            return trunk_features(self._encoder, pixels[block.start : block.stop], size, device, seed)

        return self._cached(f"features-fit-{view}", len(pixels), width, run_trunk)

    def _cached(self, name: str, count: int, row_bytes: int, make: Callable[[range], npt.NDArray[Any]]) -> MappedRows:
        folder, worker = f"{self._attempt}/work/{name}", self._worker
        blocks = blocks_of(count, row_bytes, worker.world)
        for turn in range(0, len(blocks), worker.world):
            if turn + worker.rank < len(blocks):
                make_block(self._corpus.artefact.store, folder, blocks[turn + worker.rank], make)
            # A barrier after each turn: no worker maps a missing block, and none waits until its collective times out.
            worker.total(torch.zeros(1))
        return map_blocks(self._corpus.artefact.store, folder, blocks)


def _save(trainer: Trainer) -> dict[str, bytes]:
    from mrcg.encoder.trainer import EncoderTrainer

    assert isinstance(trainer, EncoderTrainer)
    spec, weights = trainer.result()
    history = {"best_epoch": trainer.state.best_epoch, "epochs": trainer.state.history}
    return {
        WEIGHTS: weights,
        SPEC: spec_bytes(spec, fingerprint(spec, weights)),
        HISTORY: json.dumps(history, indent=1).encode(),
    }
