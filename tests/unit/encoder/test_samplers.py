import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrcg.encoder.augmentation import augment
from mrcg.encoder.samplers import class_balanced_batches, learning_rate, triplet_batches
from mrcg.training.batches import shuffled_batches, worker_share


@given(st.integers(0, 80), st.integers(2, 16), st.integers(0, 5))
def test_every_image_is_in_one_batch(count, size, epoch):
    batches = shuffled_batches(count, size, 1, epoch)
    assert sorted(i for batch in batches for i in batch.tolist()) == list(range(count))
    assert all(len(batch) > 1 for batch in batches) or count == 1


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(2, 16))
def test_triplets_are_valid_and_every_possible_anchor_is_used(labels, size):
    y = np.array(labels)
    batches = triplet_batches(y, size, 1, 0)
    anchors = []
    for batch in batches:
        a, p, n = batch.T
        assert (y[a] == y[p]).all()
        assert (a != p).all()
        assert (y[a] != y[n]).all()
        anchors += a.tolist()
    possible = [i for i in range(len(y)) if (y == y[i]).sum() > 1 and (y != y[i]).any()]
    assert sorted(anchors) == possible


@given(st.integers(1, 60), st.integers(2, 16), st.integers(1, 4), st.integers(1, 2))
def test_workers_share_every_batch_and_take_the_same_number_of_steps(count, size, world, min_rows):
    batches = shuffled_batches(count, size, 1, 0)
    shares = [worker_share(batches, rank, world, min_rows) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    for parts in zip(*shares, strict=True):
        assert world == 1 or min(map(len, parts)) >= min_rows
        assert len({i for part in parts for i in part.tolist()}) == sum(map(len, parts))
    taken = sum(len(part) for share in shares for part in share)
    assert taken == sum(len(b) for b in batches if world == 1 or len(b) >= min_rows * world)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.integers(2, 24), st.integers(2, 6), st.integers(0, 3))
def test_balanced_batches_have_equally_many_images_of_each_class(labels, size, per_class, epoch):
    y = np.array(labels)
    sizes = {c: int((y == c).sum()) for c in set(labels)}
    for batch in class_balanced_batches(y, size, per_class, 1, epoch):
        assert len(set(batch.tolist())) == len(batch)
        counts = {int(c): int((y[batch] == c).sum()) for c in np.unique(y[batch])}
        assert len(counts) == min(len(sizes), max(2, size // per_class))
        assert all(count == min(per_class, sizes[c]) for c, count in counts.items())


def test_balanced_batches_use_all_images_of_a_class_equally_often():
    y = np.repeat([0, 1, 2], [30, 7, 12])
    seen = np.bincount(np.concatenate(class_balanced_batches(y, 12, 4, 1, 0)), minlength=len(y))
    for c in range(3):
        assert np.ptp(seen[y == c]) <= 1


def test_epochs_differ_and_repeat():
    y = np.array([0, 1] * 20)
    first, again, next_epoch = (np.concatenate(triplet_batches(y, 8, 1, epoch)) for epoch in (0, 0, 1))
    assert (first == again).all()
    assert not (first == next_epoch).all()


def test_the_cosine_schedule_warms_up_and_ends_near_zero():
    rates = [learning_rate("cosine", 1.0, step, 100) for step in range(100)]
    assert rates[0] < rates[4] == max(rates) == 1.0
    assert rates[-1] < 0.01
    assert learning_rate("constant", 0.5, 99, 100) == 0.5


def test_augmentation_is_seeded_and_small_and_differs_between_images():
    grey = torch.zeros(6, 32, 32, dtype=torch.uint8)
    grey[:, 8:24, 8:24] = 200

    def augmented(seed):
        return augment(grey, seed)

    before = torch.random.get_rng_state()
    assert torch.equal(augmented(1), augmented(1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.equal(augmented(1), augmented(2))
    assert not torch.equal(augmented(1)[0], augmented(1)[1])
    assert augmented(1).min() >= 0
    assert augmented(1).max() <= 1
    assert abs(float(augmented(1).mean()) - float(grey.float().mean()) / 255) < 0.1
