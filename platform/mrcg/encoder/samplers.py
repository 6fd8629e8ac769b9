"""Which images make a batch: deterministic by seed and epoch."""

from __future__ import annotations

import math

import numpy as np

from mrcg.hashing import seed_of
from mrcg.training.batches import Indices


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


def class_balanced_batches(labels: Indices, batch_size: int, per_class: int, seed: int, epoch: int) -> list[Indices]:
    """P x K batches: K images each of P classes, as many batches as one pass over all images takes.

    Classes take turns, and so do the images of a class. P is what fits into ``batch_size``, at least two and at
    most all classes; a class with fewer than K images gives all that it has.
    """
    rng = np.random.default_rng(seed_of(seed, "balanced", epoch))
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    wide = min(len(members), max(2, batch_size // per_class))
    decks = [_Deck(rng, own) for own in members]
    turns = _Deck(rng, np.arange(len(members)))
    count = max(1, round(len(labels) / max(1, wide * per_class)))
    return [np.concatenate([decks[c].deal(per_class) for c in turns.deal(wide)]) for _ in range(count)]


class _Deck:
    """Deals from shuffled cards; what is left when they run out is dealt before they are shuffled again."""

    def __init__(self, rng: np.random.Generator, cards: Indices) -> None:
        self._rng = rng
        self._cards = cards
        self._left = rng.permutation(cards)

    def deal(self, count: int) -> Indices:
        """``count`` different cards, fewer where there are no more."""
        hand, self._left = self._left[:count], self._left[count:]
        if len(hand) < min(count, len(self._cards)):
            fresh = self._rng.permutation(self._cards)
            # What is in the hand goes to the end, so that no card is dealt twice at once.
            fresh = np.concatenate([fresh[~np.isin(fresh, hand)], fresh[np.isin(fresh, hand)]])
            missing = min(count, len(self._cards)) - len(hand)
            hand, self._left = np.concatenate([hand, fresh[:missing]]), fresh[missing:]
        return hand


def learning_rate(schedule: str, base: float, step: int, steps: int) -> float:
    """Rate of a step: constant, or a cosine from ``base`` to 0 with a warm-up of 5 % of the steps."""
    if schedule == "constant":
        return base
    warmup = max(1, steps // 20)
    if step < warmup:
        return base * (step + 1) / warmup
    return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
