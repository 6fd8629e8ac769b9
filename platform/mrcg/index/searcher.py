"""The searcher: neighbours with all that an answer needs of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mrcg.index.sharded import ShardedIndex
from mrcg.search import Found, RequestContext
from mrcg.tombstones import Tombstones


class Searcher:
    """Finds neighbours with all that an answer needs of them."""

    def __init__(self, index: ShardedIndex, tombstones: Tombstones) -> None:
        self.index = index
        self._tombstones = tombstones

    def _obey(self) -> None:
        """Bury what was forbidden since the last search."""
        if self._tombstones.look():
            gallery = self.index.gallery
            self.index.bury(self._tombstones.forbidden(gallery.ids(gallery.rows)))

    def search(self, embeddings_bd: npt.NDArray[np.float32], contexts: list[RequestContext], n: int) -> list[Found]:
        """The n nearest that each context allows; one index search for each distinct allowed set."""
        self._obey()
        found: list[Found | None] = [None] * len(contexts)
        for which in _by_allowed(contexts):
            allowed = contexts[which[0]].allowed
            near = self.index.search(embeddings_bd[which], n, allowed)
            for place, rows, distances in zip(which, near.rows_qk, near.distances_qk, strict=True):
                real = rows[rows >= 0]
                found[place] = Found(
                    image_ids=self.index.gallery.ids(real),
                    labels=self.index.gallery.labels(real),
                    distances=distances[: len(real)].tolist(),
                    vectors_nd=self.index.vectors(real),
                )
        return [one for one in found if one is not None]


def _by_allowed(contexts: list[RequestContext]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for place, context in enumerate(contexts):
        groups.setdefault(id(context.allowed), []).append(place)
    return list(groups.values())
