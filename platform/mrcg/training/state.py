"""State shared by all training code: data-parallel workers, and a training state that can be saved and resumed.

A checkpoint is one safetensors file with the trained weights, the optimiser's state and the history. Frozen weights are
not in it, nor those of the best epoch, which are a file of their own. It contains no pickle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mrcg.errors import IntegrityError, StoreError
from mrcg.storage.store import Artefact, Store

SNAPSHOTS = "snapshots/"


@dataclass(frozen=True)
class LossSum:
    """A sum of loss terms and their number, so that workers can divide by the number of terms of all workers."""

    total: Tensor
    count: Tensor

    def mean(self) -> Tensor:
        """Return the mean of the terms; without terms it is 0, with a gradient of 0."""
        return self.total / self.count.clamp_min(1)


def _gather_single(x_bd: Tensor) -> tuple[Tensor, slice]:
    return x_bd, slice(None)


@dataclass(frozen=True)
class Worker:
    """One data-parallel training process. The defaults are for a single process.

    Attributes:
        rank: number of this worker; the first is 0.
        world: number of workers.
        device: torch device of this worker.
        broadcast: returns the first worker's number on all workers. Validation scores differ, because each worker has
            its own BatchNorm statistics, but all workers must stop at the same epoch.
        total: returns the sum of a tensor over all workers, without gradients.
        gather: returns the rows of all workers, with gradients, and the slice of this worker's rows.
    """

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    broadcast: Callable[[float], float] = float
    total: Callable[[Tensor], Tensor] = torch.Tensor.detach
    gather: Callable[[Tensor], tuple[Tensor, slice]] = _gather_single

    def mean(self, loss: LossSum) -> Tensor:
        """Return this worker's sum, divided so that the mean over workers is the mean over the terms of all workers."""
        return loss.total / (self.total(loss.count.float()) / self.world).clamp_min(1 / self.world)


class BestWeights(Protocol):
    """Where the weights of the best epoch are kept."""

    def keep(self, epoch: int, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        """Keep what ``weights`` returns, those of an epoch that is the best so far."""
        ...

    def has(self, epoch: int) -> bool:
        """Return whether the weights of an epoch are kept."""
        ...

    def read(self, epoch: int) -> bytes:
        """Return what was kept of an epoch, as safetensors bytes."""
        ...

    def settle(self, epoch: int) -> None:
        """Keep this epoch, which a checkpoint names, until a later one is settled."""
        ...


class BestInMemory:
    """Best weights in memory, of one epoch."""

    def __init__(self) -> None:
        self._kept: dict[int, bytes] = {}

    def keep(self, epoch: int, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        """Keep the weights of an epoch, and of no other."""
        self._kept = {epoch: safetensors.torch.save(dict(weights()))}

    def has(self, epoch: int) -> bool:
        """Return whether the weights of an epoch are kept."""
        return epoch in self._kept

    def read(self, epoch: int) -> bytes:
        """Return what was kept of an epoch."""
        return self._kept[epoch]

    def settle(self, epoch: int) -> None:
        """Do nothing: there are no checkpoints in memory."""


class BestInStore:
    """Best weights as files in a store: that of the best epoch, and that of the best epoch which the checkpoint names.

    Args:
        store: that holds the attempt.
        folder: of the files.
        writes: whether this process writes them; one of the workers does.
    """

    def __init__(self, store: Store, folder: str, writes: bool = True) -> None:
        self._store, self._folder, self._writes = store, folder, writes
        self._settled = -1

    def keep(self, epoch: int, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        """Write the file of an epoch."""
        if self._writes:
            write_tensors(self._store, self._name(epoch), weights())
            self._remove_before(epoch)

    def has(self, epoch: int) -> bool:
        """Return whether there is a file of an epoch."""
        return self._store.exists(self._name(epoch))

    def read(self, epoch: int) -> bytes:
        """Return the file of an epoch."""
        return self._store.read_bytes(self._name(epoch))

    def settle(self, epoch: int) -> None:
        """Keep the file of this epoch until a later one is settled, and remove earlier ones."""
        self._settled = epoch
        if self._writes:
            self._remove_before(epoch)

    def _remove_before(self, epoch: int) -> None:
        # Never a later one: it may be of a process that took over the attempt.
        for name in self._store.listdir(self._folder):
            number = name.removesuffix(".safetensors")
            if number.isdigit() and int(number) < epoch and int(number) != self._settled:
                self._store.remove(f"{self._folder}/{name}")

    def _name(self, epoch: int) -> str:
        return f"{self._folder}/{epoch:06d}.safetensors"


class TrainingState:
    """A model, its optimiser, the history of its epochs and the weights of the best epoch.

    If two epochs have the same score, the later one is the best.

    Attributes:
        model: with trained and frozen weights.
        optimizer: of the trained weights.
        history: a row for each epoch.
        best_epoch: number of the best epoch, -1 before the first.
        best: where its weights are kept; may be replaced before the first epoch.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer
        self.history: list[dict[str, float]] = []
        self.best_epoch = -1
        self.best: BestWeights = BestInMemory()
        self._best_score: float | None = float("-inf")

    def add(self, row: dict[str, float], score: float | None) -> None:
        """Record an epoch; keep its weights if no earlier epoch has a higher score.

        Args:
            row: of the history.
            score: of the epoch; None where the last epoch is the best whatever its score, and nothing has to be kept.
        """
        self.history.append(row)
        if score is not None and self._best_score is not None and score < self._best_score:
            return
        self._best_score = score
        self.best_epoch = len(self.history) - 1
        if score is not None:
            self.best.keep(self.best_epoch, self.tensors)

    def best_weights(self) -> bytes:
        """Return the best weights as safetensors bytes; before the first epoch, the current weights."""
        if self.history and self._best_score is not None:
            return self.best.read(self.best_epoch)
        return safetensors.torch.save(self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        """Return the current weights by name, on the CPU; those that are there already are not copied."""
        return {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the tensors and the metadata of a checkpoint.

        With it and the file of the best epoch, a training goes on with the same result as without an interruption.
        """
        frozen = self._frozen()
        tensors = {f"model.{name}": value for name, value in self.tensors().items() if name not in frozen}
        for index, values in self.optimizer.state_dict()["state"].items():
            for name, value in values.items():
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
        facts = {"history": self.history, "best_epoch": self.best_epoch, "best_score": self._best_score}
        return tensors, {"facts": json.dumps(facts)}

    def restore(self, path: Path) -> None:
        """Restore the state from the file of a checkpoint.

        Raises:
            IntegrityError: the file is not a checkpoint of this model.
        """
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                facts = json.loads(file.metadata()["facts"])
                weights = {name[6:]: file.get_tensor(name) for name in names if name.startswith("model.")}
                # Checkpoints of earlier versions hold the best weights, too.
                best = {name[5:]: file.get_tensor(name) for name in names if name.startswith("best.")}
                state: dict[int, dict[str, Tensor]] = {}
                for key in names:
                    if key.startswith("optimizer."):
                        _, index, name = key.split(".", 2)
                        # A copy: the tensor of the file is a map of it.
                        state.setdefault(int(index), {})[name] = file.get_tensor(key).clone()
            missing, unknown = self.model.load_state_dict(weights, strict=False)
            if unknown or set(missing) - self._frozen():
                raise KeyError(*unknown, *missing)
            if not best and facts["best_score"] is not None and not self.best.has(facts["best_epoch"]):
                raise KeyError(f"best weights, of epoch {facts['best_epoch']}")
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise IntegrityError(
                f"a checkpoint does not fit this model ({' '.join(str(error).split())[:120]}): "
                "run `mrcg gc` to remove the attempt"
            ) from error
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.history = facts["history"]
        self.best_epoch = facts["best_epoch"]
        self._best_score = facts["best_score"]
        if best:
            self.best.keep(self.best_epoch, lambda: best)
        self.best.settle(self.best_epoch)

    def _frozen(self) -> set[str]:
        """Return the names of the weights that training does not change; buffers are not among them."""
        return {name for name, value in self.model.named_parameters() if not value.requires_grad}


def write_tensors(
    store: Store, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a safetensors file of a store, without a copy of them in memory.

    Raises:
        StoreError: the store cannot be written.
    """
    with store.staged(name) as path:
        try:
            safetensors.torch.save_file(dict(tensors), path, None if metadata is None else dict(metadata))
        except SafetensorError as error:
            raise StoreError(
                f"store {store.url} cannot be written at {name} ({error}): free space, or use another --store"
            ) from error


def snapshot_name(epoch: int) -> str:
    """Return the name of the file with the weights after an epoch."""
    return f"{SNAPSHOTS}{epoch:06d}.safetensors"


def snapshots_of(artefact: Artefact) -> dict[int, str]:
    """Return the snapshot files of a version of kind ``encoders`` or ``rerankers``, by epoch."""
    return {int(name.removeprefix(SNAPSHOTS).split(".")[0]): name for name in artefact.names(SNAPSHOTS)}
