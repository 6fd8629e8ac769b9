"""What a reranker learns from: the scores of a graph's nodes against which of them are relevant (DESIGN §3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mrcg.config.settings import RerankerSettings
from mrcg.training.state import LossSum


def graph_loss(settings: RerankerSettings, logits_bn: Tensor, targets_bn: Tensor, mask_bn: Tensor) -> LossSum:
    """The loss that ``reranker.loss`` names; arguments as below."""
    if settings.loss == "listwise":
        return listwise_loss(logits_bn, targets_bn, mask_bn)
    return focal_loss(logits_bn, targets_bn, mask_bn, settings.focal_alpha, settings.focal_gamma)


def focal_loss(logits_bn: Tensor, targets_bn: Tensor, mask_bn: Tensor, alpha: float, gamma: float) -> LossSum:
    """Over existing nodes -α_t (1 - p_t)^γ log p_t (paper eq. 9).

    Args:
        logits_bn: a score of each node, before the sigmoid.
        targets_bn: True where a node is relevant to its query.
        mask_bn: False where a rank is a pad.
        alpha: weight of the relevant nodes, 1 - α of the others.
        gamma: how much less a node counts that is scored well already.
    """
    targets = targets_bn.to(logits_bn.dtype)
    cross_entropy = functional.binary_cross_entropy_with_logits(logits_bn, targets, reduction="none")
    alpha_t = alpha * targets + (1 - alpha) * (1 - targets)
    # 1 - p_t = 1 - exp(-cross entropy), without a second sigmoid.
    missed = -torch.expm1(-cross_entropy)
    losses = alpha_t * missed**gamma * cross_entropy * mask_bn
    return LossSum(losses.sum(), mask_bn.sum())


def listwise_loss(logits_bn: Tensor, targets_bn: Tensor, mask_bn: Tensor) -> LossSum:
    """ListNet's top-one cross-entropy (Cao et al. 2007) with binary relevance, over the b graphs.

    -(1 / |R|) Σ_{i in R} log softmax(logits)_i, R the relevant nodes, the softmax over the existing ones. A graph
    without a relevant node gives 0 and counts. Arguments as of ``focal_loss``.
    """
    # Not -inf: a graph without any node would be nan on the way.
    lowest = torch.finfo(logits_bn.dtype).min
    log_share = functional.log_softmax(logits_bn.masked_fill(~mask_bn, lowest), dim=-1)
    relevant = targets_bn.bool() & mask_bn
    losses = -log_share.masked_fill(~relevant, 0.0).sum(-1) / relevant.sum(-1).clamp_min(1)
    return LossSum(losses.sum(), torch.tensor(len(losses), device=losses.device))
