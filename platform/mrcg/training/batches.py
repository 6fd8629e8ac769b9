"""Shuffled batches of row numbers, and each worker's share of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

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


def own_share(batches: list[Indices], rank: int, world: int, least: int) -> list[Indices]:
    """The rows of each batch that one of several workers takes.

    A batch that cannot give ``least`` rows to every worker is left out by all: BatchNorm cannot train on one
    image (take 2 with it, else 1), and workers that do not take the same number of steps wait for each other for ever.
    """
    if world == 1:
        return batches
    return [batch[rank::world] for batch in batches if len(batch) >= least * world]
