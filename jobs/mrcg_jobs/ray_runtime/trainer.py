"""Run a trainer of the library on Ray Train: data parallel, with checkpoints, resumed after a failure."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pyarrow.fs
import ray
import ray.train
import torch
import torch.distributed
import torch.distributed.nn.functional
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchTrainer, get_device, prepare_model
from torch import Tensor, nn

from mrcg.config.settings import ComputeSettings
from mrcg.corpus.splits import Fold
from mrcg.errors import MrcgError, from_row, to_row
from mrcg.execution.ray_environment import COMPUTE_ENV
from mrcg.storage.manifest import kind_of
from mrcg.storage.store import Artefact, Store
from mrcg.training.state import BestInStore, TrainingState, Worker, snapshot_name, write_tensors
from mrcg_jobs.job import Job
from mrcg_jobs.ray_runtime.cluster import cpus_each, own_errors
from mrcg_jobs.ray_runtime.progress import Watch, reporter

log = logging.getLogger(__name__)


class Trainer(Protocol):
    """A trainer of the library, which trains epoch by epoch."""

    state: TrainingState

    @property
    def finished(self) -> bool:
        """Whether training is done."""
        ...

    def run_epoch(self, on_batch: Callable[[int, int], None]) -> dict[str, float]:
        """Train one epoch and return its row of the history."""
        ...


Wrap = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class TrainTask:
    """What each worker needs to train; it is pickled and sent to all of them.

    Attributes:
        store: URL of the store.
        attempt: folder of the attempt.
        inputs: versions by name, as in ``Step.inputs``.
        config: passed on to ``build``.
        epochs: number of epochs.
        snapshots: number of last epochs whose weights are kept as files, besides those of ``save``.
        build: makes the trainer on the worker.
        save: returns the files of the finished trainer, by name.
        fold: left out of the training part; None leaves out nothing.
        run: unique name of this run, set by ``train``.
        threads: CPU threads of each worker, set by ``train``.
        board: receives the progress, set by ``train``.
    """

    store: str
    attempt: str
    inputs: dict[str, str]
    config: Any
    epochs: int
    snapshots: int
    build: Callable[[TrainTask, Worker, Wrap], Trainer]
    save: Callable[[Trainer], dict[str, bytes]]
    fold: Fold | None = None
    run: str = ""
    threads: int = 1
    board: Any = None

    @property
    def failure(self) -> str:
        """File with the ``MrcgError`` that ended this run."""
        return f"{self.attempt}/failed-{self.run}.json"

    def artefact(self, name: str) -> Artefact:
        """Open an input on this worker."""
        return Store(self.store).artefact(kind_of(name), self.inputs[name])


def train(job: Job, task: TrainTask, workers: int, min_workers: int = 0) -> list[str]:
    """Train on Ray Train until the trainer is finished.

    Args:
        job: the job of the stage.
        task: what the workers train.
        workers: number of workers.
        min_workers: continue with as few as this when nodes are lost, and with more when they come back; 0 waits for
            all workers.

    Returns:
        Names of the files in the attempt's output.
    """
    compute = job.config.compute
    per_worker = cpus_each(workers, compute.cpus_per_trainer)
    job.progress(0, 0, "starting workers")
    with Watch(job.progress) as watch, own_errors():
        # A unique name: Ray would treat a second run of the same name as a continuation.
        run_task = replace(task, run=uuid.uuid4().hex, board=watch.board, threads=max(1, int(per_worker)))
        trainer = TorchTrainer(
            _train_loop,
            train_loop_config={"task": run_task},
            scaling_config=ScalingConfig(
                num_workers=(min_workers, workers) if 0 < min_workers < workers else workers,
                use_gpu=compute.use_gpu,
                resources_per_worker=_resources(compute, per_worker),
            ),
            run_config=_run_config(job, run_task.run),
        )
        trainer.fit()
        if job.store.exists(run_task.failure):
            raise from_row(job.store.read_json(run_task.failure))
    return job.store.files(job.attempt.output)


def _resources(compute: ComputeSettings, per_worker: float) -> dict[str, float]:
    return {"CPU": per_worker, **({"GPU": 1.0} if compute.use_gpu else {})}


def _run_config(job: Job, name: str) -> RunConfig:
    # Ray keeps its own state of the run here; the weights are in our checkpoints.
    folder = job.store.path(f"{job.attempt.folder}/ray")
    filesystem = None if job.store.local else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(job.store.fs))
    return RunConfig(
        name=name,
        storage_path=folder,
        storage_filesystem=filesystem,
        failure_config=FailureConfig(max_failures=job.config.compute.max_failures),
        worker_runtime_env={"env_vars": COMPUTE_ENV},
    )


def _train_loop(config: dict[str, Any]) -> None:
    task: TrainTask = config["task"]
    store = Store(task.store)
    # A MrcgError would be raised again by every retry. After it, Ray restarts all workers, and they return here.
    if store.exists(task.failure):
        return
    try:
        _train(task, store)
    except MrcgError as error:
        store.write_bytes(task.failure, json.dumps(to_row(error)).encode())
        if ray.train.get_context().get_world_size() > 1:
            raise  # ends the run of the other workers, which would wait for this one


def _train(task: TrainTask, store: Store) -> None:
    context = ray.train.get_context()
    torch.set_num_threads(task.threads)
    rank, world, device = context.get_world_rank(), context.get_world_size(), str(get_device())
    worker = Worker(rank, world, device, _agree, _total, _gather) if world > 1 else Worker(device=device)
    trainer = task.build(task, worker, _wrapper(worker))
    trainer.state.best = BestInStore(store, f"{task.attempt}/best", writes=rank == 0)
    _resume(store, task.attempt, trainer)
    report = reporter(task.board if worker.rank == 0 else None)
    checkpoints = _Checkpoints(store, task) if worker.rank == 0 else None
    while not trainer.finished:
        _one_epoch(task, trainer, report, checkpoints)
    if worker.rank == 0:
        for name, data in task.save(trainer).items():
            store.write_bytes(f"{task.attempt}/output/{name}", data)


def _agree(value: float) -> float:
    return float(broadcast_from_rank_zero(value))


def _total(tensor: Tensor) -> Tensor:
    summed = tensor.detach().clone()
    # The backend needs tensors on the worker's device: NCCL does not accept CPU tensors.
    on_device = summed.to(get_device())
    torch.distributed.all_reduce(on_device)
    return on_device.to(summed.device)


def _gather(rows: Tensor) -> tuple[Tensor, slice]:
    counts = torch.zeros(torch.distributed.get_world_size(), dtype=torch.int64)
    rank = torch.distributed.get_rank()
    counts[rank] = len(rows)
    sizes = _total(counts).tolist()
    # all_gather needs tensors of equal size: shorter ones are padded, and the padding is cut off afterwards.
    padded = torch.nn.functional.pad(rows, (0, 0) * (rows.dim() - 1) + (0, max(sizes) - len(rows)))
    parts = torch.distributed.nn.functional.all_gather(padded)
    start = sum(sizes[:rank])
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]), slice(start, start + len(rows))


class _Checkpoints:
    """Writes checkpoints of a training, at most one every ``compute.checkpoint_minutes``, and keeps the last one.

    The first follows the first epoch. None follows the last epoch: its result is written instead. So a run that was
    stopped repeats at most the epochs since the last checkpoint, with the same bytes.
    """

    def __init__(self, store: Store, task: TrainTask) -> None:
        self._store, self._task = store, task
        self._seconds = 60 * task.config.compute.checkpoint_minutes
        self._written = float("-inf")

    def after(self, epoch: int, trainer: Trainer) -> None:
        """Write what is due after an epoch: its snapshot, and a checkpoint."""
        state, attempt = trainer.state, self._task.attempt
        if epoch >= self._task.epochs - self._task.snapshots:
            # Before the checkpoint: a run that resumes from it does not repeat this epoch.
            write_tensors(self._store, f"{attempt}/output/{snapshot_name(epoch)}", state.tensors())
        if trainer.finished or time.monotonic() - self._written < self._seconds:
            return
        earlier = _checkpoints_in(self._store, attempt)
        write_tensors(self._store, f"{attempt}/checkpoints/{epoch:06d}.safetensors", *state.checkpoint())
        self._written = time.monotonic()
        state.best.settle(state.best_epoch)
        for name in earlier:
            self._store.remove(name)


def _one_epoch(
    task: TrainTask, trainer: Trainer, report: Callable[[float, float, str], None], checkpoints: _Checkpoints | None
) -> None:
    epoch = len(trainer.state.history)
    last = [0.0]

    def on_batch(done: int, total: int) -> None:
        if time.monotonic() - last[0] > 0.3 or done == total:
            last[0] = time.monotonic()
            report(epoch + done / total, task.epochs, _note(epoch, task.epochs, trainer))

    row = trainer.run_epoch(on_batch)
    if checkpoints is not None:
        checkpoints.after(epoch, trainer)
    # A barrier: no worker starts the next epoch before this one is saved.
    ray.train.report(dict(row))


def _note(epoch: int, epochs: int, trainer: Trainer) -> str:
    note = f"epoch {epoch + 1}/{epochs}"
    if trainer.state.history:
        last = trainer.state.history[-1]
        note += f", loss {last['loss']:.3f}, validation MAP {100 * last['validation_map']:.1f}"
    return note


def _wrapper(worker: Worker) -> Wrap:
    def wrap(model: nn.Module) -> nn.Module:
        # A loss term of weight 0 leaves a branch without gradients, which is an error in DDP without this option.
        options = {"find_unused_parameters": True} if worker.world > 1 else None
        prepared: nn.Module = prepare_model(model, parallel_strategy_kwargs=options)
        return prepared

    return wrap


def _resume(store: Store, attempt: str, trainer: Trainer) -> None:
    names = _checkpoints_in(store, attempt)
    if names:
        with store.local_path(names[-1]) as path:
            trainer.state.restore(path)
        log.info("resuming after epoch %d", len(trainer.state.history))


def _checkpoints_in(store: Store, attempt: str) -> list[str]:
    """Return the checkpoints of an attempt, the last one last; a file whose name begins with a dot is not complete."""
    folder = f"{attempt}/checkpoints"
    names = [name for name in store.listdir(folder) if name.endswith(".safetensors") and name[0] != "."]
    return [f"{folder}/{name}" for name in sorted(names)]
