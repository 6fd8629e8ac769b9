"""When a training writes a checkpoint, and which of them stays."""

from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from mrcg.config.settings import ComputeSettings
from mrcg.errors import IntegrityError
from mrcg.training.state import BestInStore, TrainingState, write_tensors
from mrcg_jobs.ray_runtime import trainer as module


class State(TrainingState):
    """Of a model whose only weight is the number of the epoch."""

    def __init__(self):
        super().__init__(model := torch.nn.Linear(1, 1, bias=False), torch.optim.SGD(model.parameters()))

    def run(self, epoch, score=None):
        torch.nn.init.constant_(self.model.weight, epoch)
        self.add({"epoch": epoch}, score)


def written(store, name):
    """The epoch whose weights are in a file."""
    (weight,) = safetensors.torch.load(store.read_bytes(name)).values()
    return int(weight)


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


def keep(best, epoch):
    best.keep(epoch, lambda: {"weight": torch.full((1,), float(epoch))})


def numbers(store, folder):
    """The epochs with a file in a folder."""
    return [int(name.split(".")[0]) for name in store.listdir(folder)]


def run(store, clock, epochs, minutes, seconds, snapshots=0, first=0, scores=None):
    """The checkpoints that lie in the store after each epoch; with scores, the best weights as well."""
    checkpoints, trainer = training(store, epochs, minutes, snapshots)
    trainer.state.best = BestInStore(store, "a/best")
    trainer.state.history = [{"epoch": epoch} for epoch in range(first)]
    seen = []
    for epoch in range(first, epochs):
        clock.now += seconds
        trainer.state.run(epoch, scores and scores[epoch])
        trainer.finished = epoch == epochs - 1
        checkpoints.after(epoch, trainer)
        kept = numbers(store, "a/checkpoints")
        seen.append((kept, numbers(store, "a/best")) if scores else kept)
    return seen


def test_with_zero_minutes_there_is_one_after_every_epoch_but_the_last(store, clock):
    assert run(store, clock, 4, 0, 1) == [[0], [1], [2], [2]]
    with store.local_path("a/checkpoints/000002.safetensors") as path:
        (state := State()).restore(path)
    assert (state.model.weight.item(), len(state.history), state.best_epoch) == (2, 3, 2)


def test_otherwise_one_follows_the_first_epoch_and_then_one_every_so_many_minutes(store, clock):
    assert run(store, clock, 8, 5, 100) == [[0], [0], [0], [3], [3], [3], [6], [6]]


def test_a_resumed_training_removes_the_checkpoint_that_it_came_from(store, clock):
    run(store, clock, 3, 60, 1)
    assert run(store, clock, 6, 60, 1, first=1) == [[1]] * 5


def test_snapshots_of_the_last_epochs_are_written_whatever_the_checkpoints(store, clock):
    run(store, clock, 5, 60, 1, snapshots=2)
    assert store.listdir("a/output/snapshots") == ["000003.safetensors", "000004.safetensors"]
    assert written(store, "a/output/snapshots/000004.safetensors") == 4


def test_the_last_whole_checkpoint_is_resumed_from(store):
    for name in ("000001.safetensors", "000010.safetensors", ".000011.safetensors"):
        store.write_bytes(f"a/checkpoints/{name}", b"")
    assert module._checkpoints_in(store, "a")[-1] == "a/checkpoints/000010.safetensors"
    assert module._checkpoints_in(store, "nothing") == []


def test_the_best_weights_that_a_checkpoint_names_stay_until_the_next_checkpoint(store, clock):
    seen = run(store, clock, 6, 5, 100, scores=[0.1, 0.3, 0.2, 0.4, 0.1, 0.5])
    # Epoch 1 is the best after epochs 1 and 2, but the checkpoint of epoch 0 names epoch 0.
    assert seen == [([0], [0]), ([0], [0, 1]), ([0], [0, 1]), ([3], [3]), ([3], [3]), ([3], [3, 5])]
    assert [written(store, f"a/best/{epoch:06d}.safetensors") for epoch in (3, 5)] == [3, 5]


def test_no_more_than_two_epochs_are_kept_however_often_the_best_changes(store, clock):
    seen = run(store, clock, 6, 60, 1, scores=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert [best for _, best in seen] == [[0], [0, 1], [0, 2], [0, 3], [0, 4], [0, 5]]


def test_a_later_epoch_is_never_removed_for_it_may_be_of_another_process(store):
    keep(BestInStore(store, "a/best"), 7)
    late = BestInStore(store, "a/best")
    keep(late, 3)
    late.settle(3)
    assert numbers(store, "a/best") == [3, 7]


def test_one_worker_writes_the_best_weights_and_all_read_them(store):
    others = BestInStore(store, "a/best", writes=False)
    others.keep(0, lambda: pytest.fail("weights are gathered for nothing"))
    assert store.listdir("a/best") == []
    keep(BestInStore(store, "a/best"), 7)
    others.settle(8)
    assert others.has(7) and not others.has(8)
    assert safetensors.torch.load(others.read(7))["weight"].item() == 7


def test_a_checkpoint_has_the_trained_weights_alone(store):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2))
    model[0].requires_grad_(False)
    state = TrainingState(model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]))
    tensors, _ = state.checkpoint()
    assert {name for name in tensors if name.startswith("model.0")} == set()
    assert {"model.1.running_mean", "model.2.weight"} <= set(tensors)


def test_a_checkpoint_that_lacks_weights_is_refused(store):
    def adam():
        model = torch.nn.Linear(1, 1, bias=False)
        state = TrainingState(model, torch.optim.Adam(model.parameters()))
        state.best = BestInStore(store, "best")
        return state

    (state := adam()).model(torch.ones(1, 1)).sum().backward()
    state.optimizer.step()
    state.add({"epoch": 0}, 1.0)
    tensors, facts = state.checkpoint()
    write_tensors(store, "whole", tensors, facts)
    with store.local_path("whole") as path:
        adam().restore(path)
        store.remove("best/000000.safetensors")
        with pytest.raises(IntegrityError, match=r"best weights, of epoch 0.*mrcg gc"):
            adam().restore(path)
    del tensors["model.weight"]
    write_tensors(store, "part", tensors, facts)
    with store.local_path("part") as path, pytest.raises(IntegrityError, match="does not fit this model"):
        adam().restore(path)
    store.write_bytes("text", b"not a checkpoint")
    with store.local_path("text") as path, pytest.raises(IntegrityError, match="mrcg gc"):
        adam().restore(path)


def test_a_checkpoint_of_an_earlier_version_holds_its_best_weights(store):
    state = State()
    state.run(1, 0.5)
    tensors, facts = state.checkpoint()
    write_tensors(store, "old", {**tensors, "best.weight": torch.full((1, 1), 9.0)}, facts)
    resumed = State()
    with store.local_path("old") as path:
        resumed.restore(path)
    assert safetensors.torch.load(resumed.best_weights())["weight"].item() == 9
