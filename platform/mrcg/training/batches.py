"""Shuffled batches of row numbers, and each worker's share of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mrcg.hashing import seed_of

Indices = npt.NDArray[np.int64]


def shuffled_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[Indices]:
    """Return all indices 0..count-1 in random order in batches; a last batch of one joins the previous batch."""
    order = np.random.default_rng(seed_of(seed, "order", epoch)).permutation(count)
    batches = [order[i : i + batch_size] for i in range(0, count, batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        # BatchNorm cannot train on a single image.
        last = batches.pop()
        batches[-1] = np.concatenate([batches[-1], last])
    return batches


def worker_share(batches: list[Indices], rank: int, world: int, min_rows: int) -> list[Indices]:
    """Return the rows of each batch that one of several workers trains on.

    All workers skip a batch that has fewer than ``min_rows`` rows for each of them, because they must all take the same
    number of steps: otherwise they wait for each other forever. BatchNorm cannot train on a single image, so use 2 with
    one image per row, else 1. A single worker gets all batches unchanged.
    """
    if world == 1:
        return batches
    return [batch[rank::world] for batch in batches if len(batch) >= min_rows * world]
