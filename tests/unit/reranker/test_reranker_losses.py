import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrcg.config.settings import RerankerSettings
from mrcg.reranker.losses import focal_loss, graph_loss, listwise_loss


def scored(seed, count=3, nodes=5, share=0.8):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, nodes, generator=rng, dtype=torch.float64)
    targets = torch.rand(count, nodes, generator=rng) < 0.4
    return logits, targets, torch.rand(count, nodes, generator=rng) < share


@given(st.floats(0, 1), st.floats(0, 4), st.integers(0, 30))
def test_focal_loss_equals_the_naive_one(alpha, gamma, seed):
    logits, targets, mask = scored(seed)
    losses = []
    for logit, target, exists in zip(logits.ravel(), targets.ravel(), mask.ravel(), strict=True):
        p = torch.sigmoid(logit)
        p_t, alpha_t = (p, alpha) if target else (1 - p, 1 - alpha)
        if exists:
            losses.append(float(-alpha_t * (1 - p_t) ** gamma * torch.log(p_t)))
    expected = sum(losses) / len(losses) if losses else 0.0
    assert focal_loss(logits, targets, mask, alpha, gamma).mean().item() == pytest.approx(expected, abs=1e-9)


@given(st.integers(0, 60), st.floats(0, 1))
def test_listwise_loss_equals_the_naive_one(seed, share):
    logits, targets, mask = scored(seed, share=share)
    losses = []
    for b in range(len(logits)):
        nodes = [i for i in range(5) if mask[b, i]]
        relevant = [i for i in nodes if targets[b, i]]
        total = sum(math.exp(logits[b, i]) for i in nodes)
        shares = [math.log(math.exp(logits[b, i]) / total) for i in relevant]
        losses.append(-sum(shares) / len(relevant) if relevant else 0.0)
    assert listwise_loss(logits, targets, mask).mean().item() == pytest.approx(sum(losses) / 3, abs=1e-9)


@pytest.mark.parametrize("loss", ["focal", "listwise"])
@pytest.mark.parametrize("seed", range(4))
def test_gradients(loss, seed):
    """With pads, a graph without relevant nodes and one without any node."""
    logits, targets, mask = scored(seed)
    targets[1], mask[2] = False, False
    settings = RerankerSettings(loss=loss)
    assert torch.autograd.gradcheck(lambda x: graph_loss(settings, x, targets, mask).mean(), (logits.requires_grad_(),))


@pytest.mark.parametrize("loss", ["focal", "listwise"])
def test_pads_are_not_learned_from(loss):
    logits, targets, mask = scored(1)
    mask[2] = False
    logits.requires_grad_()
    graph_loss(RerankerSettings(loss=loss), logits, targets, mask).mean().backward()
    assert (logits.grad[~mask] == 0).all()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("loss", ["focal", "listwise"])
def test_huge_scores_and_empty_graphs_stay_finite(loss):
    logits = torch.tensor([[1e4, -1e4, 0.0], [1e30, 1e30, -1e30], [0.0, 0.0, 0.0]], requires_grad=True)
    targets = torch.tensor([[False, True, False], [True, True, True], [True, False, False]])
    mask = torch.tensor([[True, True, True], [True, True, False], [False, False, False]])
    value = graph_loss(RerankerSettings(loss=loss), logits, targets, mask).mean()
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()
