"""State shared by all training code: data-parallel workers, and a training state that can be saved and resumed.

A checkpoint is one safetensors file with weights, optimiser state, best weights and history. It contains no pickle.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mrcg.errors import IntegrityError
from mrcg.storage.store import Artefact

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


class TrainingState:
    """A model, its optimiser, the history of its epochs and the weights of the best epoch.

    If two epochs have the same score, the later one is the best.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer
        self.history: list[dict[str, float]] = []
        self.best_epoch = -1
        self.best: dict[str, Tensor] = {}
        self._best_score = float("-inf")

    def add(self, row: dict[str, float], score: float) -> None:
        """Record an epoch; keep its weights if no earlier epoch has a higher score."""
        self.history.append(row)
        if score >= self._best_score:
            self._best_score = score
            self.best_epoch = len(self.history) - 1
            self.best = {k: v.detach().cpu().clone().contiguous() for k, v in self.model.state_dict().items()}

    def best_weights(self) -> bytes:
        """Return the best weights as safetensors bytes; before the first epoch, the current weights."""
        return safetensors.torch.save(self.best) if self.best else self.weights()

    def weights(self) -> bytes:
        """Return the current weights as safetensors bytes."""
        return safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in self.model.state_dict().items()})

    def to_bytes(self) -> bytes:
        """Return a checkpoint: everything needed to resume with the same result as without an interruption."""
        tensors = {f"model.{k}": v.detach().cpu().contiguous() for k, v in self.model.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            for name, value in values.items():
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
        facts = {"history": self.history, "best_epoch": self.best_epoch, "best_score": self._best_score}
        # safetensors refuses tensors that share memory.
        return safetensors.torch.save({k: v.clone() for k, v in tensors.items()}, {"facts": json.dumps(facts)})

    def restore(self, data: bytes) -> None:
        """Restore the state from a checkpoint of ``to_bytes``.

        Raises:
            IntegrityError: the bytes are not a checkpoint of this model.
        """
        try:
            tensors = safetensors.torch.load(data)
            facts = json.loads(_metadata(data)["facts"])
            self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise IntegrityError("a checkpoint does not fit this model: run `mrcg gc` to remove the attempt") from error
        self.best = {k[5:]: v for k, v in tensors.items() if k.startswith("best.")}
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".", 2)
                state.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.history = facts["history"]
        self.best_epoch = facts["best_epoch"]
        self._best_score = facts["best_score"]


def snapshot_name(epoch: int) -> str:
    """Return the name of the file with the weights after an epoch."""
    return f"{SNAPSHOTS}{epoch:06d}.safetensors"


def snapshots_of(artefact: Artefact) -> dict[int, str]:
    """Return the snapshot files of a version of kind ``encoders`` or ``rerankers``, by epoch."""
    return {int(name.removeprefix(SNAPSHOTS).split(".")[0]): name for name in artefact.names(SNAPSHOTS)}


def _metadata(data: bytes) -> dict[str, Any]:
    # A safetensors file starts with 8 bytes of header length and a JSON header.
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, Any] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata
