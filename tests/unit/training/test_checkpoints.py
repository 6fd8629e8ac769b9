"""When a training writes a checkpoint, and which of them stays."""

from types import SimpleNamespace

import pytest

from mrcg.config.settings import ComputeSettings
from mrcg_jobs.ray_runtime import trainer as module


class State:
    """Bytes that name the epoch."""

    history: list[int]

    def __init__(self):
        self.history = []

    def to_bytes(self):
        return f"checkpoint {len(self.history) - 1}".encode()

    def weights(self):
        return f"weights {len(self.history) - 1}".encode()


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    time = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: time.now)
    return time


def training(store, epochs, minutes, snapshots=0):
    compute = ComputeSettings(checkpoint_minutes=minutes)
    task = SimpleNamespace(attempt="a", epochs=epochs, snapshots=snapshots, config=SimpleNamespace(compute=compute))
    return module._Checkpoints(store, task), SimpleNamespace(state=State(), finished=False)


def run(store, clock, epochs, minutes, seconds, snapshots=0, first=0):
    """The checkpoints that lie in the store after each epoch."""
    checkpoints, trainer = training(store, epochs, minutes, snapshots)
    trainer.state.history = list(range(first))
    seen = []
    for epoch in range(first, epochs):
        clock.now += seconds
        trainer.state.history.append(epoch)
        trainer.finished = epoch == epochs - 1
        checkpoints.after(epoch, trainer)
        seen.append([int(name.split(".")[0]) for name in store.listdir("a/checkpoints")])
    return seen


def test_with_zero_minutes_there_is_one_after_every_epoch_but_the_last(store, clock):
    assert run(store, clock, 4, 0, 1) == [[0], [1], [2], [2]]
    assert store.read_bytes("a/checkpoints/000002.safetensors") == b"checkpoint 2"


def test_otherwise_one_follows_the_first_epoch_and_then_one_every_so_many_minutes(store, clock):
    assert run(store, clock, 8, 5, 100) == [[0], [0], [0], [3], [3], [3], [6], [6]]


def test_a_resumed_training_removes_the_checkpoint_that_it_came_from(store, clock):
    run(store, clock, 3, 60, 1)
    assert run(store, clock, 6, 60, 1, first=1) == [[1]] * 5


def test_snapshots_of_the_last_epochs_are_written_whatever_the_checkpoints(store, clock):
    run(store, clock, 5, 60, 1, snapshots=2)
    assert store.listdir("a/output/snapshots") == ["000003.safetensors", "000004.safetensors"]
    assert store.read_bytes("a/output/snapshots/000004.safetensors") == b"weights 4"


def test_the_last_whole_checkpoint_is_resumed_from(store):
    for name in ("000001.safetensors", "000010.safetensors", ".000011.safetensors"):
        store.write_bytes(f"a/checkpoints/{name}", b"")
    assert module._checkpoints_in(store, "a")[-1] == "a/checkpoints/000010.safetensors"
    assert module._checkpoints_in(store, "nothing") == []
