"""The searcher: neighbours with all that an answer needs of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import starmap

import numpy as np
import numpy.typing as npt

from mrcg.api.requests import GroupBy
from mrcg.errors import NotFoundError
from mrcg.index.distances import Mask, Neighbours
from mrcg.index.group_search import Groups, numbered, search_groups
from mrcg.index.metadata import Where
from mrcg.index.sharded_index import ShardedIndex, read_facts
from mrcg.privacy.tombstones import Tombstones, entry_of
from mrcg.retrieval.merge import HitDetails, ShardHits, from_one_group
from mrcg.retrieval.query import Embedding, Scope
from mrcg.retrieval.search import Facts, RequestContext, SearchHits
from mrcg.storage.store import Store

#: Filters whose rows are remembered: of a million images each takes a megabyte.
REMEMBERED = 32
FACTS = ("label", "plane", "sequence", "site", "group_id")
#: Column that tells groups apart.
GROUPED = {"patient": "group_id", "study": "study"}


class Searcher:
    """Finds neighbours with all that an answer needs of them.

    Args:
        index: that is searched.
        tombstones: that are obeyed before each search.
        shards, of: how many shards are open here, of how many.
    """

    def __init__(self, index: ShardedIndex, tombstones: Tombstones, shards: int = 1, of: int = 1) -> None:
        self.index = index
        self._tombstones = tombstones
        self._shards, self._of = shards, of
        self._passing = functools.lru_cache(REMEMBERED)(index.gallery.mask)
        self._groups = functools.lru_cache(len(GROUPED))(self._groups_by)
        # Begun now and not with the first tombstone: of a million images it takes about two seconds.
        once = ThreadPoolExecutor(1, "entries")
        self._entries = once.submit(_Entries, index.gallery.ids(index.gallery.rows))
        once.shutdown(wait=False)

    @classmethod
    def open(cls, store: Store, version: str, part: int = 0, parts: int = 1) -> Searcher:
        """Load an index, or one of several parts of its shards; every file is hashed before it is used.

        Raises:
            IntegrityError: a file is not the one that was published.
        """
        artefact = store.artefact("indexes", version)
        of = read_facts(artefact).shards
        shards = range(part, of, parts)
        return cls(ShardedIndex.open(artefact, None if parts == 1 else shards), Tombstones(store), len(shards), of)

    def search(
        self, embeddings_bd: npt.NDArray[np.float32], contexts: list[RequestContext], n: int, scopes: list[Scope]
    ) -> list[SearchHits]:
        """The n nearest that each context allows and each scope asks for, with all that an answer needs of them."""
        return [from_one_group(near, self.fetch(near.rows)) for near in self.near(embeddings_bd, contexts, n, scopes)]

    def near(
        self, embeddings_bd: npt.NDArray[np.float32], contexts: list[RequestContext], n: int, scopes: list[Scope]
    ) -> list[ShardHits]:
        """The same as rows and distances; what is asked alike is searched together."""
        self._obey()
        found: list[ShardHits | None] = [None] * len(contexts)
        for which in _alike(contexts, scopes):
            allowed, scope = self._here(contexts[which[0]].allowed), scopes[which[0]]
            for place, one in zip(which, self._alike(embeddings_bd[which], allowed, n, scope), strict=True):
                found[place] = one
        return [one for one in found if one is not None]

    def fetch(self, rows: Sequence[int]) -> HitDetails:
        """All that an answer needs of rows that ``near`` found."""
        gallery, taken = self.index.gallery, np.array(rows, dtype=np.int64)
        columns = [gallery.values(name, taken) for name in FACTS]
        facts = list(starmap(Facts, zip(*columns, strict=True)))
        return HitDetails(gallery.ids(taken), facts, self.index.vectors(taken))

    def _here(self, allowed: Mask | None) -> Mask | None:
        # The rows behind are of shards that are not open here.
        return None if allowed is None else allowed[: len(self.index)]

    def look_up(self, context: RequestContext, image_id: str) -> Embedding:
        """(d,) stored embedding of an image that the context allows.

        Raises:
            NotFoundError: there is no such image, or not for this caller: both read alike.
        """
        self._obey()
        rows = self.index.gallery.rows_of([image_id])
        if not len(rows) or not self.index.count(_only(len(self.index), rows, self._here(context.allowed))):
            raise NotFoundError(f"no image {image_id}: ask with an image_id that a search answered")
        vector: Embedding = self.index.vectors(rows)[0].astype(np.float32)
        return vector

    def _obey(self) -> None:
        """Bury what was forbidden since the last search."""
        if new := self._tombstones.look():
            self.index.tombstone(self._entries.result().images_of(new))

    def _alike(self, queries_qd: Embedding, allowed: Mask | None, n: int, scope: Scope) -> list[ShardHits]:
        index, passing = self.index, self._within(allowed, scope)
        near = self._nearest(queries_qd, n, passing, scope.group_by)
        # Whether a query is strange does not depend on its filter.
        first = near if passing is allowed else index.search(queries_qd, 1, allowed)
        counts = index.count(allowed), index.count(passing)
        return [
            ShardHits(
                rows=rows[rows >= 0].tolist(),
                distances=distances[rows >= 0].tolist(),
                groups=self._groups_of(rows[rows >= 0], scope.group_by),
                nearest=float(nearest) if np.isfinite(nearest) else None,
                allowed=counts[0],
                passing=counts[1],
                shards=self._shards,
                of=self._of,
            )
            for rows, distances, nearest in zip(near.rows_qk, near.distances_qk, first.distances_qk[:, 0], strict=True)
        ]

    def _nearest(self, queries_qd: Embedding, n: int, passing: Mask | None, group_by: GroupBy) -> Neighbours:
        if group_by == "none":
            return self.index.search(queries_qd, n, passing)
        return search_groups(self.index, queries_qd, n, self._groups(group_by), passing)

    def _groups_of(self, rows: npt.NDArray[np.int64], group_by: GroupBy) -> list[str | None] | None:
        return None if group_by == "none" else self.index.gallery.values(GROUPED[group_by], rows)

    def _within(self, allowed: Mask | None, scope: Scope) -> Mask | None:
        """What is allowed and within a scope; the very same object where the scope takes nothing away."""
        masks = [] if scope.where == Where() else [self._passing(scope.where)]
        if scope.exclude_patient is not None:
            masks.append(~self._passing(Where(patient=(scope.exclude_patient,))))
        if scope.exclude_image is not None:
            other = np.ones(len(self.index), dtype=bool)
            other[self.index.gallery.rows_of([scope.exclude_image])] = False
            masks.append(other)
        if not masks:
            return allowed
        return functools.reduce(np.logical_and, masks if allowed is None else [allowed, *masks])

    def _groups_by(self, group_by: GroupBy) -> Groups:
        return numbered(self.index.gallery.codes(GROUPED[group_by]))


def _only(size: int, rows: npt.NDArray[np.int64], allowed: Mask | None) -> Mask:
    mask = np.zeros(size, dtype=bool)
    mask[rows] = True
    return mask if allowed is None else mask & allowed


def _alike(contexts: list[RequestContext], scopes: list[Scope]) -> list[list[int]]:
    groups: dict[tuple[int, Scope], list[int]] = {}
    for place, (context, scope) in enumerate(zip(contexts, scopes, strict=True)):
        groups.setdefault((id(context.allowed), scope), []).append(place)
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
