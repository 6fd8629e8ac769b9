"""Losses of the encoder (paper Eq. 1-3; docs/method.md#encoder).

Each loss returns the sum and the number of its terms. Workers that share a batch divide by the number of terms of all
workers, so two workers compute the same gradient as one.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from mrcg.training.state import LossSum

Mining = Literal["batch_all", "semi_hard", "hard"]


def triplet_loss(anchor_bd: Tensor, positive_bd: Tensor, negative_bd: Tensor, margin: float) -> LossSum:
    """Triplet loss ``[|a-p|² - |a-n|² + m]+``, over the active triplets (paper Eq. 1).

    Only triplets with a positive loss count, so the mean does not shrink as they become fewer during training; the
    paper sums over all triplets.
    """
    positive_distance = (anchor_bd - positive_bd).square().sum(dim=1)
    negative_distance = (anchor_bd - negative_bd).square().sum(dim=1)
    return active_terms(positive_distance - negative_distance + margin)


def mined_triplet_loss(
    embeddings_bd: Tensor, labels_b: Tensor, margin: float, mining: Mining, anchors: slice = slice(None)
) -> LossSum:
    """Triplet loss over triplets (a, p, n) mined from a batch: a ≠ p of the same class, n of another class.

    Args:
        embeddings_bd: embeddings of the batch.
        labels_b: their class numbers.
        margin: on squared L2.
        mining: ``batch_all`` uses every active triplet; ``semi_hard`` the active ones whose negative is farther away
            than the positive; ``hard`` the farthest positive and the nearest negative of each anchor.
        anchors: rows used as anchors; if the batch was gathered from several workers, those of this worker.
    """
    distances = squared_distances(embeddings_bd)[anchors]
    same = labels_b[anchors, None] == labels_b[None, :]
    self_pair = torch.eye(len(labels_b), dtype=torch.bool, device=labels_b.device)[anchors]
    positive, negative = same & ~self_pair, ~same
    if mining == "hard":
        farthest_positive = distances.masked_fill(~positive, -torch.inf).amax(dim=1)
        nearest_negative = distances.masked_fill(~negative, torch.inf).amin(dim=1)
        usable = positive.any(dim=1) & negative.any(dim=1)
        return active_terms((farthest_positive - nearest_negative + margin)[usable])
    valid = positive[:, :, None] & negative[:, None, :]
    violation = distances[:, :, None] - distances[:, None, :] + margin
    if mining == "semi_hard":
        valid &= ~(violation >= margin)
    return active_terms(violation[valid])


def pair_loss(distances: Tensor, same: Tensor, margin: float) -> LossSum:
    """Contrastive loss of pairs: d² for a same-class pair, otherwise ``([√m - d]+)²`` (Hadsell et al. 2006).

    Args:
        distances: squared L2 distance of each pair.
        same: True where both images of a pair have the same class.
        margin: on squared L2, as in the triplet loss.
    """
    # √ has an infinite gradient at 0: the small constant keeps it finite where a different-class pair coincides.
    different_class_terms = (margin**0.5 - (distances + 1e-12).sqrt()).clamp_min(0).square()
    terms = torch.where(same, distances, different_class_terms)
    return LossSum(terms.sum(), torch.tensor(terms.numel(), device=terms.device))


def contrastive_loss(embeddings_bd: Tensor, labels_b: Tensor, margin: float, anchors: slice = slice(None)) -> LossSum:
    """``pair_loss`` over all pairs of two images in a batch (``anchors`` as in ``mined_triplet_loss``)."""
    distances = squared_distances(embeddings_bd)[anchors]
    off_diagonal = ~torch.eye(len(labels_b), dtype=torch.bool, device=labels_b.device)[anchors]
    same = labels_b[anchors, None] == labels_b[None, :]
    return pair_loss(distances[off_diagonal], same[off_diagonal], margin)


def explicit_contrastive_loss(anchor_bd: Tensor, positive_bd: Tensor, negative_bd: Tensor, margin: float) -> LossSum:
    """``pair_loss`` over the pairs (a, p) and (a, n) of each triplet, so both kinds of pairs are equally frequent."""
    positive_distance = (anchor_bd - positive_bd).square().sum(dim=1)
    negative_distance = (anchor_bd - negative_bd).square().sum(dim=1)
    same = torch.cat(
        [
            torch.ones_like(positive_distance, dtype=torch.bool),
            torch.zeros_like(negative_distance, dtype=torch.bool),
        ]
    )
    return pair_loss(torch.cat([positive_distance, negative_distance]), same, margin)


def classification_loss(logits_bc: Tensor, labels_b: Tensor) -> LossSum:
    """Cross-entropy of the classification branch (paper Eq. 2)."""
    total = functional.cross_entropy(logits_bc, labels_b, reduction="sum")
    return LossSum(total, torch.tensor(len(labels_b), device=logits_bc.device))


def squared_distances(x_nd: Tensor) -> Tensor:
    """(n, n) squared L2 distances between rows."""
    norms = x_nd.square().sum(dim=1)
    return (norms[:, None] + norms[None, :] - 2 * x_nd @ x_nd.T).clamp_min(0)


def active_terms(violations: Tensor) -> LossSum:
    """Return the sum and the number of the positive violations."""
    # Not "> 0": a NaN must reach the sum and must not count as an inactive triplet.
    active = ~(violations <= 0)
    # Sum over `where`, not over a selection: the autograd graph is kept, so backward works without active triplets.
    return LossSum(torch.where(active, violations, torch.zeros_like(violations)).sum(), active.sum())
