"""Which images make a batch, and how they are varied: deterministic by seed and epoch."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from mrcg.hashing import seed_of

Indices = npt.NDArray[np.int64]


def shuffled_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[Indices]:
    """All indices 0..count-1 in random order, in batches; a last batch of one joins the one before."""
    order = np.random.default_rng(seed_of(seed, "order", epoch)).permutation(count)
    batches = [order[i : i + batch_size] for i in range(0, count, batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        # BatchNorm cannot train on one image.
        last = batches.pop()
        batches[-1] = np.concatenate([batches[-1], last])
    return batches


def triplet_batches(labels: Indices, batch_size: int, seed: int, epoch: int) -> list[Indices]:
    """Batches of (anchor, positive, negative) index triplets: each (b, 3).

    Every image that has a partner of its class and a stranger is an anchor once an epoch; its positive
    and negative are drawn anew.
    """
    rng = np.random.default_rng(seed_of(seed, "triplets", epoch))
    members = {int(c): np.flatnonzero(labels == c) for c in np.unique(labels)}
    strangers = {c: np.flatnonzero(labels != c) for c in members}
    anchors = [a for c, own in members.items() if len(own) > 1 and len(strangers[c]) for a in own.tolist()]
    triplets = np.empty((len(anchors), 3), dtype=np.int64)
    for row, anchor in enumerate(rng.permutation(anchors).tolist() if anchors else []):
        own, others = members[int(labels[anchor])], strangers[int(labels[anchor])]
        positive = own[rng.integers(len(own) - 1)]
        # The last member stands in for the anchor itself, so that the draw stays uniform.
        triplets[row] = anchor, own[-1] if positive == anchor else positive, others[rng.integers(len(others))]
    return [triplets[i : i + batch_size] for i in range(0, len(triplets), batch_size)]


def own_share(batches: list[Indices], rank: int, world: int) -> list[Indices]:
    """The rows of each batch that one of several workers takes.

    A batch that cannot give two rows to every worker is left out by all: BatchNorm cannot train on one
    image, and workers that do not take the same number of steps wait for each other for ever.
    """
    if world == 1:
        return batches
    return [batch[rank::world] for batch in batches if len(batch) >= 2 * world]


def learning_rate(schedule: str, base: float, step: int, steps: int) -> float:
    """Rate of a step: constant, or a cosine from ``base`` to 0 with a warm-up of 5 % of the steps."""
    if schedule == "constant":
        return base
    warmup = max(1, steps // 20)
    if step < warmup:
        return base * (step + 1) / warmup
    return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def augment(grey_bss: Tensor, generator: torch.Generator) -> Tensor:
    """Small changes that leave an MRI slice plausible, another for each image.

    Left-right flip, rotation to 10°, shift to 5 %, scale 0.9-1.1, gain 0.85-1.15.

    Args:
        grey_bss: (b, s, s) grey levels, uint8.
        generator: on the tensor's device.

    Returns:
        (b, s, s) floats 0..1.
    """
    count, device = len(grey_bss), grey_bss.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator, device=device) * (high - low) + low

    flip = (uniform(-1, 1) > 0).float() * 2 - 1
    angle, scale = uniform(-math.pi / 18, math.pi / 18), uniform(0.9, 1.1)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = (flip * cos, -sin, uniform(-0.1, 0.1), flip * sin, cos, uniform(-0.1, 0.1))
    theta = torch.stack(rows, dim=1).view(count, 2, 3)
    grid = functional.affine_grid(theta, [count, 1, *grey_bss.shape[1:]], align_corners=False)
    moved = functional.grid_sample(grey_bss[:, None].float() / 255, grid, align_corners=False)[:, 0]
    return (moved * uniform(0.85, 1.15)[:, None, None]).clamp(0, 1)
