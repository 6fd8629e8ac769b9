import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrcg.encoder.losses import batch_all_triplet_loss, joint_loss, squared_distances, triplet_loss


def vectors(count, dim=4, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive(triplets, margin):
    losses = [float(((a - p) ** 2).sum() - ((a - n) ** 2).sum() + margin) for a, p, n in triplets]
    active = [loss for loss in losses if loss > 0]
    return sum(active) / len(active) if active else 0.0


@given(st.integers(1, 8), st.floats(0.1, 10), st.integers(0, 99))
def test_triplet_loss_equals_the_naive_one(count, margin, seed):
    a, p, n = vectors(count * 3, seed=seed).chunk(3)
    assert float(triplet_loss(a, p, n, margin)) == pytest.approx(naive(zip(a, p, n, strict=True), margin))


@given(st.lists(st.integers(0, 2), min_size=1, max_size=8), st.floats(0.1, 10))
def test_batch_all_equals_the_naive_one(labels, margin):
    x = vectors(len(labels))
    everyone = range(len(labels))
    triplets = [
        (x[a], x[p], x[n])
        for a, p, n in itertools.product(everyone, repeat=3)
        if a != p and labels[a] == labels[p] and labels[a] != labels[n]
    ]
    assert float(batch_all_triplet_loss(x, torch.tensor(labels), margin)) == pytest.approx(naive(triplets, margin))


def test_distances_equal_the_naive_ones():
    x = vectors(6)
    assert torch.allclose(squared_distances(x), torch.cdist(x, x) ** 2)


@pytest.mark.parametrize("loss", ["triplet", "batch_all"])
def test_gradients(loss):
    x = vectors(6, seed=3).requires_grad_()
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    if loss == "triplet":
        assert torch.autograd.gradcheck(lambda y: triplet_loss(*y.chunk(3), 5.0), (x,))
    else:
        assert torch.autograd.gradcheck(lambda y: batch_all_triplet_loss(y, labels, 5.0), (x,))


def test_no_active_triplet_is_a_loss_of_zero_with_a_gradient():
    x = torch.zeros(2, 3, requires_grad=True)
    loss = batch_all_triplet_loss(x, torch.tensor([0, 0]), 1.0)
    loss.backward()
    assert loss.item() == 0
    assert (x.grad == 0).all()


def test_the_joint_loss_adds_weighted_cross_entropy():
    logits, labels = vectors(4, 3), torch.tensor([0, 1, 2, 0])
    plain = torch.nn.functional.cross_entropy(logits, labels)
    assert torch.isclose(joint_loss(torch.tensor(2.0), logits, labels, 0.5), 2 + 0.5 * plain)
    assert joint_loss(torch.tensor(2.0), logits, labels, 0.0) == 2
