"""Losses of the reranker: scores of a graph's nodes against their relevance (docs/method.md#reranker)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mrcg.config.settings import RerankerSettings
from mrcg.training.state import LossSum


def graph_loss(settings: RerankerSettings, logits_bn: Tensor, targets_bn: Tensor, mask_bn: Tensor) -> LossSum:
    """Return the loss that ``reranker.loss`` selects; for the arguments see ``focal_loss``."""
    if settings.loss == "listwise":
        return listwise_loss(logits_bn, targets_bn, mask_bn)
    return focal_loss(logits_bn, targets_bn, mask_bn, settings.focal_alpha, settings.focal_gamma)


def focal_loss(logits_bn: Tensor, targets_bn: Tensor, mask_bn: Tensor, alpha: float, gamma: float) -> LossSum:
    """Focal loss -α_t (1 - p_t)^γ log p_t over the existing nodes (paper Eq. 9).

    Args:
        logits_bn: score of each node, before the sigmoid.
        targets_bn: True where a node is relevant to its query.
        mask_bn: False for pads.
        alpha: weight of the relevant nodes; the others have weight 1 - α.
        gamma: focusing parameter; the larger, the less a well-scored node counts.
    """
    targets = targets_bn.to(logits_bn.dtype)
    cross_entropy = functional.binary_cross_entropy_with_logits(logits_bn, targets, reduction="none")
    alpha_t = alpha * targets + (1 - alpha) * (1 - targets)
    # 1 - p_t = 1 - exp(-cross entropy), without a second sigmoid.
    one_minus_p_t = -torch.expm1(-cross_entropy)
    losses = alpha_t * one_minus_p_t**gamma * cross_entropy * mask_bn
    return LossSum(losses.sum(), mask_bn.sum())


def listwise_loss(logits_bn: Tensor, targets_bn: Tensor, mask_bn: Tensor) -> LossSum:
    """ListNet's top-one cross-entropy with binary relevance (Cao et al. 2007), one term for each of the b graphs.

    -(1 / |R|) Σ_{i in R} log softmax(logits)_i, where R are the relevant nodes and the softmax runs over the existing
    nodes. A graph without relevant nodes adds 0 and still counts as a term. For the arguments see ``focal_loss``.
    """
    # Not -inf: the softmax of a graph without nodes would be NaN.
    lowest = torch.finfo(logits_bn.dtype).min
    log_softmax = functional.log_softmax(logits_bn.masked_fill(~mask_bn, lowest), dim=-1)
    relevant = targets_bn.bool() & mask_bn
    losses = -log_softmax.masked_fill(~relevant, 0.0).sum(-1) / relevant.sum(-1).clamp_min(1)
    return LossSum(losses.sum(), torch.tensor(len(losses), device=losses.device))
