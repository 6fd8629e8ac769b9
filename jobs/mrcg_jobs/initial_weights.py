"""Initial weights of the encoder, handed to workers by the attempt: they cannot read a file of another machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mrcg.encoder.pretrained import resolve_weights
from mrcg.storage.store import Store
from mrcg_jobs.job import Job

if TYPE_CHECKING:
    from torch import Tensor

_FILE = "initial.safetensors"


def hand_over(job: Job) -> None:
    """Write the initial weights beside the attempt's output; nothing where training starts from scratch.

    Raises:
        WeightsError: they cannot be loaded.
    """
    weights = resolve_weights(job.config.encoder).to_safetensors()
    if weights is not None:
        job.store.write_bytes(f"{job.attempt.folder}/{_FILE}", weights)


def handed_over(store: Store, attempt: str) -> dict[str, Tensor] | None:
    """Return the initial weights by name, None where training starts from scratch.

    Args:
        store: that holds the attempt.
        attempt: its folder.
    """
    import safetensors.torch

    name = f"{attempt}/{_FILE}"
    return safetensors.torch.load(store.read_bytes(name)) if store.exists(name) else None
