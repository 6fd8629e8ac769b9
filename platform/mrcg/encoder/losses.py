"""Losses of the encoder (paper eq. 1-3, DESIGN §3).

Each is a sum and the number of its terms: workers that share a batch divide by the number that all of them have,
so two workers learn from the same gradient as one.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from mrcg.training.state import LossSum

Mining = Literal["batch_all", "semi_hard", "hard"]


def triplet_loss(anchor_bd: Tensor, positive_bd: Tensor, negative_bd: Tensor, margin: float) -> LossSum:
    """The active triplets of ``[|a-p|² - |a-n|² + m]+`` (paper eq. 1).

    Their mean keeps the gradient's size as training leaves fewer of them; the paper sums over all.
    """
    near = (anchor_bd - positive_bd).square().sum(dim=1)
    far = (anchor_bd - negative_bd).square().sum(dim=1)
    return _active(near - far + margin)


def mined_triplet_loss(
    embeddings_bd: Tensor, labels_b: Tensor, margin: float, mining: Mining, anchors: slice = slice(None)
) -> LossSum:
    """The triplet loss over triplets (a, p, n) of a batch, a ≠ p of one class, n of another.

    Args:
        embeddings_bd: embeddings of the batch.
        labels_b: their class numbers.
        margin: on squared L2.
        mining: ``batch_all`` takes every active triplet, ``semi_hard`` those whose negative is farther than the
            positive, ``hard`` for each anchor the farthest positive and the nearest negative.
        anchors: rows that are anchors; those of one worker where a batch was gathered from several.
    """
    distances = squared_distances(embeddings_bd)[anchors]
    same = labels_b[anchors, None] == labels_b[None, :]
    self_pair = torch.eye(len(labels_b), dtype=torch.bool, device=labels_b.device)[anchors]
    positive, negative = same & ~self_pair, ~same
    if mining == "hard":
        far = distances.masked_fill(~positive, -torch.inf).amax(dim=1)
        near = distances.masked_fill(~negative, torch.inf).amin(dim=1)
        usable = positive.any(dim=1) & negative.any(dim=1)
        return _active((far - near + margin)[usable])
    valid = positive[:, :, None] & negative[:, None, :]
    violation = distances[:, :, None] - distances[:, None, :] + margin
    if mining == "semi_hard":
        valid &= ~(violation >= margin)
    return _active(violation[valid])


def pair_loss(distances: Tensor, same: Tensor, margin: float) -> LossSum:
    """Contrastive loss of pairs: d² where both are of one class, else ``([√m - d]+)²`` (Hadsell et al. 2006).

    Args:
        distances: squared L2 of each pair.
        same: whether a pair is of one class.
        margin: on squared L2, as that of the triplet loss.
    """
    # √ has no gradient at 0: two strangers that coincide are pushed apart by the small constant.
    apart = (margin**0.5 - (distances + 1e-12).sqrt()).clamp_min(0).square()
    terms = torch.where(same, distances, apart)
    return LossSum(terms.sum(), torch.tensor(terms.numel(), device=terms.device))


def contrastive_loss(embeddings_bd: Tensor, labels_b: Tensor, margin: float, anchors: slice = slice(None)) -> LossSum:
    """``pair_loss`` over all pairs of different images of a batch (``anchors`` as in ``mined_triplet_loss``)."""
    distances = squared_distances(embeddings_bd)[anchors]
    other = ~torch.eye(len(labels_b), dtype=torch.bool, device=labels_b.device)[anchors]
    same = labels_b[anchors, None] == labels_b[None, :]
    return pair_loss(distances[other], same[other], margin)


def explicit_contrastive_loss(anchor_bd: Tensor, positive_bd: Tensor, negative_bd: Tensor, margin: float) -> LossSum:
    """``pair_loss`` over the two pairs (a, p) and (a, n) of each triplet: as many of one class as of two."""
    near = (anchor_bd - positive_bd).square().sum(dim=1)
    far = (anchor_bd - negative_bd).square().sum(dim=1)
    same = torch.cat([torch.ones_like(near, dtype=torch.bool), torch.zeros_like(far, dtype=torch.bool)])
    return pair_loss(torch.cat([near, far]), same, margin)


def classification_loss(logits_bc: Tensor, labels_b: Tensor) -> LossSum:
    """Cross-entropy (paper eq. 2)."""
    total = functional.cross_entropy(logits_bc, labels_b, reduction="sum")
    return LossSum(total, torch.tensor(len(labels_b), device=logits_bc.device))


def squared_distances(x_nd: Tensor) -> Tensor:
    """(n, n) squared L2 distances between rows."""
    norms = x_nd.square().sum(dim=1)
    return (norms[:, None] + norms[None, :] - 2 * x_nd @ x_nd.T).clamp_min(0)


def _active(violations: Tensor) -> LossSum:
    # Not "> 0": what is no number must come out of the sum, and not pass for a triplet that is well apart.
    active = ~(violations <= 0)
    # A sum over nothing keeps the graph, so that backward works where no triplet is active.
    return LossSum(torch.where(active, violations, torch.zeros_like(violations)).sum(), active.sum())
