"""Losses of the encoder (paper eq. 1-3, DESIGN §3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def triplet_loss(anchor_bd: Tensor, positive_bd: Tensor, negative_bd: Tensor, margin: float) -> Tensor:
    """Mean over the active triplets of ``[|a-p|² - |a-n|² + m]+`` (paper eq. 1); 0 where none is active.

    The mean over the active ones keeps the gradient's size as training leaves fewer of them; the paper
    sums over all.
    """
    near = (anchor_bd - positive_bd).square().sum(dim=1)
    far = (anchor_bd - negative_bd).square().sum(dim=1)
    return _mean_active(near - far + margin)


def batch_all_triplet_loss(embeddings_bd: Tensor, labels_b: Tensor, margin: float) -> Tensor:
    """The same loss over every valid triplet (a, p, n) of a batch; 0 where there is none."""
    distances = squared_distances(embeddings_bd)
    same = labels_b[:, None] == labels_b[None, :]
    positive = same & ~torch.eye(len(labels_b), dtype=torch.bool, device=labels_b.device)
    valid = positive[:, :, None] & ~same[:, None, :]
    violation = distances[:, :, None] - distances[:, None, :] + margin
    return _mean_active(violation[valid])


def squared_distances(x_nd: Tensor) -> Tensor:
    """(n, n) squared L2 distances between rows."""
    norms = x_nd.square().sum(dim=1)
    return (norms[:, None] + norms[None, :] - 2 * x_nd @ x_nd.T).clamp_min(0)


def joint_loss(triplet: Tensor, logits_bc: Tensor, labels_b: Tensor, weight: float) -> Tensor:
    """Triplet term + λ · mean cross-entropy (paper eq. 3)."""
    if weight == 0:
        return triplet
    return triplet + weight * functional.cross_entropy(logits_bc, labels_b)


def _mean_active(violations: Tensor) -> Tensor:
    active = violations > 0
    # A sum over nothing keeps the graph, so that backward works where no triplet is active.
    return torch.where(active, violations, torch.zeros_like(violations)).sum() / active.sum().clamp_min(1)
