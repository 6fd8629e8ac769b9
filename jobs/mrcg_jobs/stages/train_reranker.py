"""Train the reranker with Ray Train on finished embeddings and graphs.

Modules that import PyTorch Geometric are imported on the workers only: the driver does not need it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mrcg.arrays import Fp16Vectors
from mrcg.config.settings import Config
from mrcg.corpus.embeddings import embeddings_of
from mrcg.encoder.appearance import EmbeddingFacts, facts_in
from mrcg.reranker.graph_table import read_graphs
from mrcg.reranker.spec import HISTORY, SPEC, WEIGHTS
from mrcg.stages.counts import RerankerCounts
from mrcg.storage.store import Artefact
from mrcg.training.state import Worker
from mrcg_jobs.job import Job, Outcome
from mrcg_jobs.ray_runtime.trainer import Trainer, TrainTask, Wrap, train

if TYPE_CHECKING:
    from mrcg.reranker.trainer import RerankerTrainer, TrainingGraphs


def run(job: Job) -> Outcome:
    """Train the reranker."""
    task = TrainTask(
        store=job.store.url,
        attempt=job.attempt.folder,
        inputs=dict(job.step.inputs),
        config=job.config,
        epochs=job.config.reranker.epochs,
        snapshots=job.config.reranker.snapshots,
        build=_build,
        save=_save,
    )
    names = train(job, task, job.config.compute.reranker_workers)
    history = json.loads(job.store.read_bytes(f"{job.attempt.output}/{HISTORY}"))
    best = history["epochs"][history["best_epoch"]]["validation_map"] if history["epochs"] else None
    counts = RerankerCounts(epochs=len(history["epochs"]), best_epoch=history["best_epoch"], validation_map=best)
    return Outcome(counts, [job.attempt.entry(name) for name in names])


def _build(task: TrainTask, worker: Worker, wrap: Wrap) -> RerankerTrainer:
    from mrcg.reranker.trainer import RerankerTrainer, new_reranker

    config: Config = task.config
    vectors, facts = _trained_parts(task.artefact("embeddings"))
    reranker = new_reranker(config.reranker, facts.trained_dim, config.seed, facts.encoder).to(worker.device)
    return RerankerTrainer(reranker, config.reranker, config.seed, _graphs(task, vectors), worker, wrap)


def _trained_parts(embeddings: Artefact) -> tuple[Fp16Vectors, EmbeddingFacts]:
    """Return the (rows, d) trained parts of the stored embeddings, and the facts of the embeddings."""
    facts = facts_in(embeddings.manifest)
    return embeddings_of(embeddings)[:, : facts.trained_dim], facts


def _graphs(task: TrainTask, vectors: Fp16Vectors) -> TrainingGraphs:
    """Return the training graphs by ``reranker.graphs``; validation graphs are always those of the released encoder."""
    from mrcg.reranker.cross_fitting import cross_fitted
    from mrcg.reranker.trainer import TrainingGraphs

    config, graphs = task.config, task.artefact("graphs")
    validation = read_graphs(graphs, "validation")
    if config.reranker.graphs != "cross_fit":
        return TrainingGraphs(read_graphs(graphs, config.reranker.graphs), validation, vectors)
    folds = [
        (_trained_parts(task.artefact(f"embeddings:{n}"))[0], read_graphs(task.artefact(f"graphs:{n}"), "train"))
        for n in range(config.reranker.folds)
    ]
    stacked, train = cross_fitted(vectors, folds, config.seed)
    return TrainingGraphs(train, validation, stacked)


def _save(trainer: Trainer) -> dict[str, bytes]:
    from mrcg.reranker.trainer import RerankerTrainer

    assert isinstance(trainer, RerankerTrainer)
    history = {"best_epoch": trainer.state.best_epoch, "epochs": trainer.state.history}
    return {
        WEIGHTS: trainer.state.best_weights(),
        SPEC: trainer.reranker.spec.model_dump_json(indent=1).encode(),
        HISTORY: json.dumps(history, indent=1).encode(),
    }
