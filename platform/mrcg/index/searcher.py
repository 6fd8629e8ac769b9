"""The searcher: neighbours with all that an answer needs of them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from mrcg.index.sharded import ShardedIndex
from mrcg.search import Found, RequestContext
from mrcg.tombstones import Tombstones, entry_of


class Searcher:
    """Finds neighbours with all that an answer needs of them."""

    def __init__(self, index: ShardedIndex, tombstones: Tombstones) -> None:
        self.index = index
        self._tombstones = tombstones
        # Begun now and not with the first tombstone: of a million images it takes about two seconds.
        once = ThreadPoolExecutor(1, "entries")
        self._entries = once.submit(_Entries, index.gallery.ids(index.gallery.rows))
        once.shutdown(wait=False)

    def _obey(self) -> None:
        """Bury what was forbidden since the last search."""
        if new := self._tombstones.look():
            self.index.bury(self._entries.result().images_of(new))

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


class _Entries:
    """Which image an entry of the tombstones forbids."""

    def __init__(self, image_ids: Sequence[str]) -> None:
        self._ids = np.array(image_ids, dtype="S32")
        heads = np.fromiter((_head(entry_of(one)) for one in image_ids), dtype=np.uint64, count=len(image_ids))
        self._order = np.argsort(heads, kind="stable")
        self._heads = heads[self._order]

    def images_of(self, entries: Sequence[str]) -> list[str]:
        """Ids of the images that are forbidden and here."""
        found = []
        for entry in entries:
            head = np.uint64(_head(entry))
            start, end = (int(np.searchsorted(self._heads, head, side)) for side in ("left", "right"))
            found += [one for one in self._ids[self._order[start:end]].astype(str).tolist() if entry_of(one) == entry]
        return found


def _head(entry: str) -> int:
    return int(entry[:16], 16)
