"""What all training shares: the worker's place among others, and a state that can be saved and taken up again.

A checkpoint is one safetensors file with weights, optimiser, best weights and history. No pickle.
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
    """A sum of loss terms and the number of those that count, so that workers can divide by the number of all."""

    total: Tensor
    count: Tensor

    def mean(self) -> Tensor:
        """The mean term; 0 where there is none, with a gradient of 0."""
        return self.total / self.count.clamp_min(1)


def _alone(x_bd: Tensor) -> tuple[Tensor, slice]:
    return x_bd, slice(None)


@dataclass(frozen=True)
class Worker:
    """This process among the data-parallel ones.

    Attributes:
        agree: gives every worker the first one's number: BatchNorm's statistics differ, and all must stop together.
        total: the sum of a tensor over all workers, without a gradient.
        gather: rows of all workers, with a gradient, and which of them are the own ones.
    """

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    agree: Callable[[float], float] = float
    total: Callable[[Tensor], Tensor] = torch.Tensor.detach
    gather: Callable[[Tensor], tuple[Tensor, slice]] = _alone

    def mean(self, loss: LossSum) -> Tensor:
        """This worker's terms, divided so that the mean over workers is the mean over all terms."""
        return loss.total / (self.total(loss.count.float()) / self.world).clamp_min(1 / self.world)


class TrainingState:
    """A model, its optimiser, the history of its epochs and the weights of the best of them.

    A later epoch replaces an equally good earlier one.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer
        self.history: list[dict[str, float]] = []
        self.best_epoch = -1
        self.best: dict[str, Tensor] = {}
        self._best_score = float("-inf")

    def add(self, row: dict[str, float], score: float) -> None:
        """Record an epoch; its weights are kept where the score is the best so far."""
        self.history.append(row)
        if score >= self._best_score:
            self._best_score = score
            self.best_epoch = len(self.history) - 1
            self.best = {k: v.detach().cpu().clone().contiguous() for k, v in self.model.state_dict().items()}

    def best_weights(self) -> bytes:
        """The best weights (the present ones before the first epoch) as safetensors bytes."""
        return safetensors.torch.save(self.best) if self.best else self.weights()

    def weights(self) -> bytes:
        """The present weights as safetensors bytes."""
        return safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in self.model.state_dict().items()})

    def to_bytes(self) -> bytes:
        """Everything that it takes to go on as if nothing had happened."""
        tensors = {f"model.{k}": v.detach().cpu().contiguous() for k, v in self.model.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            for name, value in values.items():
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
        facts = {"history": self.history, "best_epoch": self.best_epoch, "best_score": self._best_score}
        # A tensor must not share memory with another in the file.
        return safetensors.torch.save({k: v.clone() for k, v in tensors.items()}, {"facts": json.dumps(facts)})

    def restore(self, data: bytes) -> None:
        """Go on from ``to_bytes``.

        Raises:
            IntegrityError: the bytes are no checkpoint of this model.
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
    """File of the weights after one of the last epochs."""
    return f"{SNAPSHOTS}{epoch:06d}.safetensors"


def snapshots_of(artefact: Artefact) -> dict[int, str]:
    """Those files of a version of kind encoders or rerankers, by epoch."""
    return {int(name.removeprefix(SNAPSHOTS).split(".")[0]): name for name in artefact.names(SNAPSHOTS)}


def _metadata(data: bytes) -> dict[str, Any]:
    # safetensors: 8 bytes of header length, then the header in JSON.
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, Any] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata
