"""Train the encoder with Ray Train.

What imports torchvision is imported on the workers: the driver does without it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from mrcg.config import Config
from mrcg.corpus import Corpus, Split
from mrcg.encoder.spec import HISTORY, SPEC, WEIGHTS, fingerprint, spec_bytes
from mrcg.encoder.weights import resolve_weights
from mrcg.errors import TrainingError
from mrcg.training import Worker
from mrcg_jobs.job import Job, Outcome
from mrcg_jobs.training import Trainer, TrainTask, Wrap, train

if TYPE_CHECKING:
    from mrcg.encoder.train import EncoderTrainer, LabelledImages

INITIAL = "initial.safetensors"


def run(job: Job) -> Outcome:
    """Make the encoder.

    Raises:
        WeightsError: the initial weights cannot be had or do not fit.
        TrainingError: there is nothing to learn from, or the loss is not a number.
    """
    weights = resolve_weights(job.config.encoder).to_safetensors()
    if weights is not None:
        # Workers on other machines do not see a file of this one.
        job.store.write_bytes(f"{job.attempt.folder}/{INITIAL}", weights)
    task = TrainTask(
        store=job.store.url,
        attempt=job.attempt.folder,
        inputs=dict(job.step.inputs),
        config=job.config,
        epochs=job.config.encoder.epochs,
        threads=1,
        build=_build,
        save=_save,
    )
    names = train(job, task, job.config.compute.encoder_workers)
    history = json.loads(job.store.read_bytes(f"{job.attempt.output}/{HISTORY}"))
    facts = json.loads(job.store.read_bytes(f"{job.attempt.output}/{SPEC}"))
    counts = {
        "epochs": len(history["epochs"]),
        "best_epoch": history["best_epoch"],
        "validation_map": history["epochs"][history["best_epoch"]]["validation_map"] if history["epochs"] else None,
        "fingerprint": facts["fingerprint"],
    }
    return Outcome(counts, [job.attempt.entry(name) for name in names])


def _build(task: TrainTask, worker: Worker, wrap: Wrap) -> EncoderTrainer:
    from mrcg.encoder.train import EncoderTrainer, load_weights, new_encoder

    config: Config = task.config
    corpus, split = Corpus(task.artefact("corpus")), Split(task.artefact("splits"))
    fit = _labelled(corpus, np.flatnonzero(split.fit), config.encoder.input_size)
    if len(np.unique(fit.labels)) < 2:
        raise TrainingError("the training part has scans of fewer than two classes: nothing to tell apart")
    validation = _labelled(corpus, np.flatnonzero(split.validation), config.encoder.input_size)
    store, initial = task.artefact("corpus").store, f"{task.attempt}/{INITIAL}"
    weights = load_weights(store.read_bytes(initial)) if store.exists(initial) else None
    encoder = new_encoder(config.encoder, corpus.classes, config.seed, weights).to(worker.device)
    return EncoderTrainer(encoder, config.encoder, config.seed, fit, validation, worker, wrap)


def _labelled(corpus: Corpus, rows: np.ndarray[tuple[int], np.dtype[np.int64]], side: int) -> LabelledImages:
    from mrcg.encoder.train import LabelledImages

    classes = corpus.classes
    labels = [corpus.labels[row] for row in rows.tolist()]
    return LabelledImages(
        corpus.pixels(rows.tolist(), side),
        np.array([classes.index(label) for label in labels if label is not None], dtype=np.int64),
        [corpus.groups[row] for row in rows.tolist()],
    )


def _save(trainer: Trainer) -> dict[str, bytes]:
    from mrcg.encoder.train import EncoderTrainer

    assert isinstance(trainer, EncoderTrainer)
    weights, spec = trainer.state.best_weights(), trainer.encoder.spec
    history = {"best_epoch": trainer.state.best_epoch, "epochs": trainer.state.history}
    return {
        WEIGHTS: weights,
        SPEC: spec_bytes(spec, fingerprint(spec, weights)),
        HISTORY: json.dumps(history, indent=1).encode(),
    }
