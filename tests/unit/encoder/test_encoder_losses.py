import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrcg.encoder.losses import (
    classification_loss,
    contrastive_loss,
    explicit_contrastive_loss,
    mined_triplet_loss,
    squared_distances,
    triplet_loss,
)
from mrcg.training.state import LossSum, Worker


def vectors(count, dim=4, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def squared_distance(x, y):
    return float(((x - y) ** 2).sum())


def mean_positive(losses):
    active = [loss for loss in losses if loss > 0]
    return sum(active) / len(active) if active else 0.0


@given(st.integers(1, 8), st.floats(0.1, 10), st.integers(0, 99))
def test_triplet_loss_equals_the_naive_one(count, margin, seed):
    a, p, n = vectors(count * 3, seed=seed).chunk(3)
    naive = mean_positive(
        squared_distance(x, y) - squared_distance(x, z) + margin for x, y, z in zip(a, p, n, strict=True)
    )
    assert float(triplet_loss(a, p, n, margin).mean()) == pytest.approx(naive)


def naive_mined(x, labels, margin, mining):
    images = range(len(labels))
    losses = []
    for a in images:
        positives = [squared_distance(x[a], x[p]) for p in images if p != a and labels[p] == labels[a]]
        negatives = [squared_distance(x[a], x[n]) for n in images if labels[n] != labels[a]]
        if mining == "hard":
            losses += [max(positives) - min(negatives) + margin] if positives and negatives else []
            continue
        losses += [p - n + margin for p, n in itertools.product(positives, negatives) if mining == "batch_all" or n > p]
    return mean_positive(losses)


@pytest.mark.parametrize("mining", ["batch_all", "semi_hard", "hard"])
@given(labels=st.lists(st.integers(0, 2), min_size=1, max_size=8), margin=st.floats(0.1, 10), seed=st.integers(0, 9))
def test_mined_triplets_equal_the_naive_ones(mining, labels, margin, seed):
    x = vectors(len(labels), seed=seed)
    loss = mined_triplet_loss(x, torch.tensor(labels), margin, mining)
    assert float(loss.mean()) == pytest.approx(naive_mined(x, labels, margin, mining))


def naive_pair(x, y, same, margin):
    distance = squared_distance(x, y) ** 0.5
    return distance**2 if same else max(0.0, margin**0.5 - distance) ** 2


@given(st.lists(st.integers(0, 2), min_size=2, max_size=8), st.floats(0.1, 20))
def test_contrastive_loss_equals_the_naive_one(labels, margin):
    x = vectors(len(labels))
    pairs = [
        naive_pair(x[i], x[j], labels[i] == labels[j], margin) for i, j in itertools.permutations(range(len(labels)), 2)
    ]
    loss = contrastive_loss(x, torch.tensor(labels), margin)
    assert float(loss.mean()) == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)
    assert int(loss.count) == len(pairs)


def test_explicit_pairs_come_from_the_triplets():
    a, p, n = vectors(12).chunk(3)
    pairs = [naive_pair(x, y, True, 9.0) for x, y in zip(a, p, strict=True)]
    pairs += [naive_pair(x, y, False, 9.0) for x, y in zip(a, n, strict=True)]
    assert float(explicit_contrastive_loss(a, p, n, 9.0).mean()) == pytest.approx(sum(pairs) / 8, abs=1e-5)


@pytest.mark.parametrize("mining", ["batch_all", "semi_hard", "hard", "contrastive"])
def test_losses_of_several_workers_add_up_to_the_loss_of_one(mining):
    x, labels = vectors(9), torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1])

    def loss(anchors):
        if mining == "contrastive":
            return contrastive_loss(x, labels, 5.0, anchors)
        return mined_triplet_loss(x, labels, 5.0, mining, anchors)

    parts = [loss(slice(0, 4)), loss(slice(4, 9))]
    full = loss(slice(None))
    assert float(sum(part.total for part in parts)) == pytest.approx(float(full.total))
    assert int(sum(part.count for part in parts)) == int(full.count)


def test_the_mean_over_workers_is_the_mean_over_all_terms():
    sums = [LossSum(torch.tensor(6.0), torch.tensor(2)), LossSum(torch.tensor(1.0), torch.tensor(5))]
    workers = [Worker(rank=rank, world=2, total=lambda _: torch.tensor(7.0)) for rank in range(2)]
    means = [worker.mean(loss) for worker, loss in zip(workers, sums, strict=True)]
    assert float(sum(means)) / 2 == pytest.approx(1.0)
    assert float(Worker().mean(LossSum(torch.tensor(0.0), torch.tensor(0)))) == 0


def test_distances_equal_the_naive_ones():
    x = vectors(6)
    assert torch.allclose(squared_distances(x), torch.cdist(x, x) ** 2)


@pytest.mark.parametrize("loss", ["triplet", "batch_all", "semi_hard", "hard", "contrastive", "explicit contrastive"])
def test_gradients(loss):
    x = vectors(6, seed=3).requires_grad_()
    labels = torch.tensor([0, 0, 1, 1, 2, 2])

    def value(y):
        if loss == "triplet":
            return triplet_loss(*y.chunk(3), 5.0).mean()
        if loss == "contrastive":
            return contrastive_loss(y, labels, 5.0).mean()
        if loss == "explicit contrastive":
            return explicit_contrastive_loss(*y.chunk(3), 5.0).mean()
        return mined_triplet_loss(y, labels, 5.0, loss).mean()

    assert torch.autograd.gradcheck(value, (x,))


@pytest.mark.parametrize("mining", ["batch_all", "semi_hard", "hard"])
def test_without_active_triplets_the_loss_is_zero_and_has_a_gradient(mining):
    x = torch.zeros(2, 3, requires_grad=True)
    loss = mined_triplet_loss(x, torch.tensor([0, 0]), 1.0, mining).mean()
    loss.backward()
    assert loss.item() == 0
    assert (x.grad == 0).all()


@pytest.mark.parametrize("mining", ["batch_all", "semi_hard", "hard"])
def test_a_nan_embedding_makes_the_loss_nan(mining):
    x = vectors(6)
    x[2] = torch.nan
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    assert torch.isnan(mined_triplet_loss(x, labels, 5.0, mining).mean())
    assert torch.isnan(triplet_loss(*x.chunk(3), 5.0).mean())
    assert torch.isnan(contrastive_loss(x, labels, 5.0).mean())


def test_classification_is_mean_cross_entropy():
    logits, labels = vectors(4, 3), torch.tensor([0, 1, 2, 0])
    plain = torch.nn.functional.cross_entropy(logits, labels)
    assert torch.isclose(classification_loss(logits, labels).mean(), plain)
