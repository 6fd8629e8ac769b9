"""Training batches and the learning rate schedule. Batches depend only on the seed and the epoch."""

from __future__ import annotations

import math

import numpy as np

from mrcg.hashing import seed_of
from mrcg.training.batches import Indices


def triplet_batches(labels: Indices, batch_size: int, seed: int, epoch: int) -> list[Indices]:
    """Return batches of (anchor, positive, negative) index triplets, each of shape (b, 3).

    Every image is an anchor once an epoch if there is another image of its class and an image of another class. Its
    positive and negative are drawn again in each epoch.
    """
    rng = np.random.default_rng(seed_of(seed, "triplets", epoch))
    members = {int(c): np.flatnonzero(labels == c) for c in np.unique(labels)}
    non_members = {c: np.flatnonzero(labels != c) for c in members}
    anchors = [a for c, same in members.items() if len(same) > 1 and len(non_members[c]) for a in same.tolist()]
    triplets = np.empty((len(anchors), 3), dtype=np.int64)
    for row, anchor in enumerate(rng.permutation(anchors).tolist() if anchors else []):
        same, other = members[int(labels[anchor])], non_members[int(labels[anchor])]
        positive = same[rng.integers(len(same) - 1)]
        # If the anchor itself is drawn, the last member, which is never drawn, replaces it: the draw stays uniform.
        triplets[row] = anchor, same[-1] if positive == anchor else positive, other[rng.integers(len(other))]
    return [triplets[i : i + batch_size] for i in range(0, len(triplets), batch_size)]


def class_balanced_batches(labels: Indices, batch_size: int, per_class: int, seed: int, epoch: int) -> list[Indices]:
    """Return P x K batches, each with K images of P classes, for about one pass over all images.

    Classes are drawn without replacement, and so are the images of a class. P is ``batch_size // per_class``, at least
    two and at most the number of classes; a class with fewer than K = ``per_class`` images contributes all of them.
    """
    rng = np.random.default_rng(seed_of(seed, "balanced", epoch))
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    classes_per_batch = min(len(members), max(2, batch_size // per_class))
    images = [_ShuffledPool(rng, rows) for rows in members]
    classes = _ShuffledPool(rng, np.arange(len(members)))
    count = max(1, round(len(labels) / max(1, classes_per_batch * per_class)))
    return [np.concatenate([images[c].draw(per_class) for c in classes.draw(classes_per_batch)]) for _ in range(count)]


class _ShuffledPool:
    """Draws items without replacement; once all have been drawn, they are shuffled and drawn again."""

    def __init__(self, rng: np.random.Generator, items: Indices) -> None:
        self._rng = rng
        self._items = items
        self._remaining = rng.permutation(items)

    def draw(self, count: int) -> Indices:
        """Return ``count`` distinct items, or all items if there are fewer."""
        drawn, self._remaining = self._remaining[:count], self._remaining[count:]
        if len(drawn) < min(count, len(self._items)):
            shuffled = self._rng.permutation(self._items)
            # Items already in this draw go to the end, so that no item is in it twice.
            shuffled = np.concatenate([shuffled[~np.isin(shuffled, drawn)], shuffled[np.isin(shuffled, drawn)]])
            missing = min(count, len(self._items)) - len(drawn)
            drawn, self._remaining = np.concatenate([drawn, shuffled[:missing]]), shuffled[missing:]
        return drawn


def learning_rate(schedule: str, base: float, step: int, steps: int) -> float:
    """Return the rate of a step: constant, or a cosine from ``base`` to 0 after a warm-up over 5 % of the steps.

    A function of the step, unlike ``torch.optim.lr_scheduler``: a resumed training needs no state of it.
    """
    if schedule == "constant":
        return base
    warmup = max(1, steps // 20)
    if step < warmup:
        return base * (step + 1) / warmup
    return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
