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
from mrcg.corpus.reader import Corpus
from mrcg.corpus.splits import Split
from mrcg.encoder.pretrained import resolve_weights
from mrcg.encoder.spec import HISTORY, SPEC, WEIGHTS, fingerprint, spec_bytes
from mrcg.errors import TrainingError
from mrcg.hashing import seed_of
from mrcg.stages.counts import EncoderCounts
from mrcg.training.block_cache import MappedRows, blocks_of, make_block, map_blocks
from mrcg.training.state import Worker
from mrcg_jobs.job import Job, Outcome
from mrcg_jobs.ray_runtime.trainer import Trainer, TrainTask, Wrap, train

if TYPE_CHECKING:
    from mrcg.encoder.model import Encoder
    from mrcg.encoder.trainer import EncoderTrainer, LabelledImages

log = logging.getLogger(__name__)

INITIAL = "initial.safetensors"
Numbers = npt.NDArray[np.int64]


def run(job: Job) -> Outcome:
    """Train the encoder.

    Raises:
        WeightsError: the initial weights cannot be loaded or do not fit the architecture.
        TrainingError: there are scans of fewer than two classes to learn from, or the trainer cannot continue.
    """
    if job.step.fold is None:
        _warn_of_rare_classes(Corpus(job.inputs["corpus"]), Split(job.inputs["splits"]))
    weights = resolve_weights(job.config.encoder).to_safetensors()
    if weights is not None:
        # Written to the store: workers on other machines cannot read a file of this one.
        job.store.write_bytes(f"{job.attempt.folder}/{INITIAL}", weights)
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
    from mrcg.encoder.trainer import EncoderTrainer, load_weights, new_encoder

    config: Config = task.config
    corpus, split = Corpus(task.artefact("corpus")), Split(task.artefact("splits"))
    store, initial = task.artefact("corpus").store, f"{task.attempt}/{INITIAL}"
    weights = load_weights(store.read_bytes(initial)) if store.exists(initial) else None
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
    """Inputs of all epochs, computed once: decoded and resized pixels, and features of a frozen trunk.

    They are stored as blocks in the attempt, so a resumed run reuses them. Workers divide the blocks among themselves
    and wait for each other.
    """

    def __init__(self, task: TrainTask, worker: Worker, corpus: Corpus, encoder: Encoder) -> None:
        self._attempt = task.attempt
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
        pixels = self._pixels(rows, part)
        return LabelledImages(
            corpus.scans["image_id"].take(rows).to_pylist(),
            np.array([classes.index(label) for label in labels if label is not None], dtype=np.int64),
            [corpus.groups[row] for row in rows.tolist()],
            pixels,
            self._features(pixels, part),
        )

    def _pixels(self, rows: Numbers, part: str) -> Any:
        side = self._settings.input_size
        if not len(rows):
            return np.empty((0, side, side), dtype=np.uint8)

        def decode(block: range) -> npt.NDArray[Any]:
            return self._corpus.pixels(rows[block.start : block.stop].tolist(), side)

        return self._cached(f"pixels-{part}", len(rows), side * side, decode)

    def _features(self, pixels: Any, part: str) -> tuple[MappedRows, ...]:
        from mrcg.encoder.embedder import trunk_features

        settings = self._settings
        if settings.freeze != "convolutions" or not settings.cache_trunk or not len(pixels):
            return ()
        # Validation images are never augmented.
        views = settings.cached_views if settings.augment and part == "fit" else 1
        vary = settings.augment and part == "fit"
        width = trunk_features(self._encoder, pixels[:1], 1, self._worker.device).nbytes
        features = []
        for view in range(views):

            def run_trunk(block: range, view: int = view) -> npt.NDArray[Any]:
                seed = seed_of(self._seed, "view", view, block.start) if vary else None
                block_pixels = pixels[block.start : block.stop]
                return trunk_features(self._encoder, block_pixels, settings.batch_size, self._worker.device, seed)

            features.append(self._cached(f"features-{part}-{view}", len(pixels), width, run_trunk))
        return tuple(features)

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
    weights, spec = trainer.state.best_weights(), trainer.encoder.spec
    history = {"best_epoch": trainer.state.best_epoch, "epochs": trainer.state.history}
    return {
        WEIGHTS: weights,
        SPEC: spec_bytes(spec, fingerprint(spec, weights)),
        HISTORY: json.dumps(history, indent=1).encode(),
    }
