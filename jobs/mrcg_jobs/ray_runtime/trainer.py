"""Ray Train around a trainer of the library: data parallel, a checkpoint each epoch, resumed after a loss."""

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
from mrcg.errors import MrcgError
from mrcg.execution.ray_environment import COMPUTE_ENV
from mrcg.storage.manifest import kind_of
from mrcg.storage.store import Artefact, Store
from mrcg.training.state import TrainingState, Worker, snapshot_name
from mrcg_jobs.job import Job
from mrcg_jobs.ray_runtime.cluster import carry, cpus_each, own_errors, revived
from mrcg_jobs.ray_runtime.progress import Watch, reporter

log = logging.getLogger(__name__)


class Trainer(Protocol):
    """A trainer of the library: trains one epoch after the other."""

    state: TrainingState

    @property
    def finished(self) -> bool:
        """Whether no epoch is left."""
        ...

    def run_epoch(self, on_batch: Callable[[int, int], None]) -> dict[str, float]:
        """Train one epoch; returns its row of the history."""
        ...


Wrap = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class TrainTask:
    """What a worker needs to train: it is sent to each of them.

    ``build`` makes the trainer on the worker; ``save`` turns the finished one into files by name. The weights
    of the last ``snapshots`` epochs are kept beside what it saves. ``inputs`` are named as in ``Step.inputs``.
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
        """File of the error of ours that ended this run."""
        return f"{self.attempt}/failed-{self.run}.json"

    def artefact(self, name: str) -> Artefact:
        """An input, opened on this worker."""
        return Store(self.store).artefact(kind_of(name), self.inputs[name])


def train(job: Job, task: TrainTask, workers: int, at_least: int = 0) -> list[str]:
    """Run a task on Ray Train until it is finished.

    Args:
        job: the stage.
        task: what its workers do.
        workers: how many.
        at_least: go on with so many where nodes are lost, and with more when they come back; 0 waits for all.

    Returns:
        Names of the files that it wrote below the attempt's output.
    """
    compute = job.config.compute
    per_worker = cpus_each(workers, compute.cpus_per_trainer)
    job.progress(0, 0, "starting workers")
    with Watch(job.progress) as watch, own_errors():
        # A name is used once: Ray would take a second run of the same name for a continuation.
        sent = replace(task, run=uuid.uuid4().hex, board=watch.board, threads=max(1, int(per_worker)))
        trainer = TorchTrainer(
            _train_loop,
            train_loop_config={"task": sent},
            scaling_config=ScalingConfig(
                num_workers=(at_least, workers) if 0 < at_least < workers else workers,
                use_gpu=compute.use_gpu,
                resources_per_worker=_resources(compute, per_worker),
            ),
            run_config=_run_config(job, sent.run),
        )
        trainer.fit()
        if job.store.exists(sent.failure):
            raise revived(job.store.read_json(sent.failure))
    return job.store.files(job.attempt.output)


def _resources(compute: ComputeSettings, per_worker: float) -> dict[str, float]:
    return {"CPU": per_worker, **({"GPU": 1.0} if compute.use_gpu else {})}


def _run_config(job: Job, name: str) -> RunConfig:
    # Ray keeps its own notes of the run here; the weights are in our checkpoints.
    where = job.store.path(f"{job.attempt.folder}/ray")
    filesystem = None if job.store.local else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(job.store.fs))
    return RunConfig(
        name=name,
        storage_path=where,
        storage_filesystem=filesystem,
        failure_config=FailureConfig(max_failures=job.config.compute.max_failures),
        worker_runtime_env={"env_vars": COMPUTE_ENV},
    )


def _train_loop(config: dict[str, Any]) -> None:
    task: TrainTask = config["task"]
    store = Store(task.store)
    # An error of ours comes back however often it is tried. Ray starts all workers anew after one, and they end here.
    if store.exists(task.failure):
        return
    try:
        _train(task, store)
    except MrcgError as error:
        store.write_bytes(task.failure, json.dumps(carry(error)).encode())
        if ray.train.get_context().get_world_size() > 1:
            raise  # the others wait for this one


def _train(task: TrainTask, store: Store) -> None:
    context = ray.train.get_context()
    torch.set_num_threads(task.threads)
    rank, world, device = context.get_world_rank(), context.get_world_size(), str(get_device())
    worker = Worker(rank, world, device, _agree, _total, _gather) if world > 1 else Worker(device=device)
    trainer = task.build(task, worker, _wrapper(worker))
    _resume(store, task.attempt, trainer)
    report = reporter(task.board if worker.rank == 0 else None)
    while not trainer.finished:
        _one_epoch(task, trainer, report, worker, store)
    if worker.rank == 0:
        for name, data in task.save(trainer).items():
            store.write_bytes(f"{task.attempt}/output/{name}", data)


def _agree(value: float) -> float:
    return float(broadcast_from_rank_zero(value))


def _total(tensor: Tensor) -> Tensor:
    summed = tensor.detach().clone()
    # The group's backend wants tensors of the device: NCCL takes none of the CPU.
    on_device = summed.to(get_device())
    torch.distributed.all_reduce(on_device)
    return on_device.to(summed.device)


def _gather(rows: Tensor) -> tuple[Tensor, slice]:
    counts = torch.zeros(torch.distributed.get_world_size(), dtype=torch.int64)
    rank = torch.distributed.get_rank()
    counts[rank] = len(rows)
    sizes = _total(counts).tolist()
    # Only tensors of one size can be gathered: the shorter ones are padded and cut again.
    padded = torch.nn.functional.pad(rows, (0, 0) * (rows.dim() - 1) + (0, max(sizes) - len(rows)))
    parts = torch.distributed.nn.functional.all_gather(padded)
    start = sum(sizes[:rank])
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]), slice(start, start + len(rows))


def _one_epoch(
    task: TrainTask, trainer: Trainer, report: Callable[[float, float, str], None], worker: Worker, store: Store
) -> None:
    epoch = len(trainer.state.history)
    last = [0.0]

    def on_batch(done: int, total: int) -> None:
        if time.monotonic() - last[0] > 0.3 or done == total:
            last[0] = time.monotonic()
            report(epoch + done / total, task.epochs, _note(epoch, task.epochs, trainer))

    row = trainer.run_epoch(on_batch)
    if worker.rank == 0:
        # Before the checkpoint: a run that goes on after it does not come back to this epoch.
        if epoch >= task.epochs - task.snapshots:
            store.write_bytes(f"{task.attempt}/output/{snapshot_name(epoch)}", trainer.state.weights())
        store.write_bytes(f"{task.attempt}/checkpoints/{epoch:06d}.safetensors", trainer.state.to_bytes())
        store.remove(f"{task.attempt}/checkpoints/{epoch - 1:06d}.safetensors")
    # All workers meet here: nobody starts an epoch whose predecessor is not saved.
    ray.train.report(dict(row))


def _note(epoch: int, epochs: int, trainer: Trainer) -> str:
    note = f"epoch {epoch + 1}/{epochs}"
    if trainer.state.history:
        last = trainer.state.history[-1]
        note += f", loss {last['loss']:.3f}, validation MAP {100 * last['validation_map']:.1f}"
    return note


def _wrapper(worker: Worker) -> Wrap:
    def wrap(model: nn.Module) -> nn.Module:
        # A term of weight 0 leaves a branch without gradients; DDP has to be told.
        options = {"find_unused_parameters": True} if worker.world > 1 else None
        prepared: nn.Module = prepare_model(model, parallel_strategy_kwargs=options)
        return prepared

    return wrap


def _resume(store: Store, attempt: str, trainer: Trainer) -> None:
    names = [
        name for name in store.listdir(f"{attempt}/checkpoints") if name.endswith(".safetensors") and name[0] != "."
    ]
    if names:
        trainer.state.restore(store.read_bytes(f"{attempt}/checkpoints/{names[-1]}"))
        log.info("going on after epoch %d", len(trainer.state.history))
