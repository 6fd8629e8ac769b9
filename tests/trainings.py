"""Helpers for tests of trainings."""

from __future__ import annotations

from mrcg.storage.store import Store
from mrcg.training.state import BestInStore, TrainingState, write_tensors


def move(store: Store, stopped: TrainingState, resumed: TrainingState) -> None:
    """Take a training from one state to another, as a checkpoint and a file of the best weights do."""
    write_tensors(store, "checkpoint", *stopped.checkpoint())
    resumed.best = BestInStore(store, "best")
    if stopped.history and stopped.best_epoch >= 0:
        store.write_bytes(f"best/{stopped.best_epoch:06d}.safetensors", stopped.best_weights())
    with store.local_path("checkpoint") as path:
        resumed.restore(path)
