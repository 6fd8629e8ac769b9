"""The searcher: applies policy, filters, grouping and tombstones to searches of an index."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import starmap

import numpy as np
import numpy.typing as npt

from mrcg.api.requests import GroupBy
from mrcg.arrays import Mask
from mrcg.errors import NotFoundError
from mrcg.index.distances import Neighbours
from mrcg.index.group_search import Groups, groups_from_codes, search_groups
from mrcg.index.metadata import Where
from mrcg.index.sharded_index import ShardedIndex, read_facts
from mrcg.privacy.tombstones import Tombstones, entry_of
from mrcg.retrieval.merge import HitDetails, ShardHits, hits_of_one_part
from mrcg.retrieval.query import Embedding, Scope
from mrcg.retrieval.search import GalleryFacts, RequestContext, SearchHits
from mrcg.storage.store import Store

#: Number of filter masks that are cached; one takes 1 MB per million images.
CACHED_FILTERS = 32
#: Columns of ``schemas.ROWS`` in the order of the fields of ``GalleryFacts``.
FACT_COLUMNS = ("label", "plane", "sequence", "site", "group_id")
#: Column that identifies the group of an image.
GROUP_COLUMNS = {"patient": "group_id", "study": "study"}


class Searcher:
    """Searches an index, or one part of it, and returns neighbours with everything that an answer needs.

    Args:
        index: to search.
        tombstones: refreshed before each search; their images are excluded.
        shards: number of open shards.
        total_shards: number of shards in the whole index.
    """

    def __init__(self, index: ShardedIndex, tombstones: Tombstones, shards: int = 1, total_shards: int = 1) -> None:
        self.index = index
        self._tombstones = tombstones
        self._shards, self._total_shards = shards, total_shards
        self._mask_of = functools.lru_cache(CACHED_FILTERS)(index.gallery.mask)
        self._groups_by = functools.lru_cache(len(GROUP_COLUMNS))(self._read_groups)
        # Started now, not at the first tombstone, because it takes about two seconds per million images.
        pool = ThreadPoolExecutor(1, "entries")
        self._entries = pool.submit(_EntryLookup, index.gallery.ids(index.gallery.rows))
        pool.shutdown(wait=False)

    @classmethod
    def open(cls, store: Store, version: str, part: int = 0, parts: int = 1) -> Searcher:
        """Load an index, or one of several parts of it; the hash of every file is checked before it is used.

        Args:
            store: that has the index.
            version: of the index.
            part: number of the part to load, from 0.
            parts: number of parts; each has the shards ``part::parts``.

        Raises:
            NotFoundError: the store has no such version.
            IntegrityError: a file differs from the published one.
        """
        artefact = store.artefact("indexes", version)
        total = read_facts(artefact).shards
        shards = range(part, total, parts)
        return cls(ShardedIndex.open(artefact, None if parts == 1 else shards), Tombstones(store), len(shards), total)

    def search(
        self, embeddings_bd: npt.NDArray[np.float32], contexts: list[RequestContext], n: int, scopes: list[Scope]
    ) -> list[SearchHits]:
        """Return for each query the n nearest images that its context allows and its scope includes, with details.

        Raises:
            StoreError: the tombstones cannot be read.
        """
        return [hits_of_one_part(near, self.fetch(near.rows)) for near in self.near(embeddings_bd, contexts, n, scopes)]

    def near(
        self, embeddings_bd: npt.NDArray[np.float32], contexts: list[RequestContext], n: int, scopes: list[Scope]
    ) -> list[ShardHits]:
        """Return the same hits without details; queries with the same mask and an equal scope are searched together."""
        self._apply_tombstones()
        hits_by_place: dict[int, ShardHits] = {}
        for places in _places_with_equal_masks(contexts, scopes):
            allowed, scope = self._open_rows(contexts[places[0]].allowed), scopes[places[0]]
            hits = self._search_batch(embeddings_bd[places], allowed, n, scope)
            hits_by_place.update(zip(places, hits, strict=True))
        return [hits_by_place[place] for place in range(len(contexts))]

    def fetch(self, rows: Sequence[int]) -> HitDetails:
        """Return everything that an answer needs for rows that ``near`` returned."""
        gallery, row_array = self.index.gallery, np.array(rows, dtype=np.int64)
        columns = [gallery.values(name, row_array) for name in FACT_COLUMNS]
        facts = list(starmap(GalleryFacts, zip(*columns, strict=True)))
        return HitDetails(gallery.ids(row_array), facts, self.index.vectors(row_array))

    def _open_rows(self, allowed: Mask | None) -> Mask | None:
        # Rows beyond the last open one are in shards that are not open here.
        return None if allowed is None else allowed[: len(self.index)]

    def look_up(self, context: RequestContext, image_id: str) -> Embedding:
        """Return the (d,) stored embedding of an image that the context allows.

        Raises:
            NotFoundError: the image does not exist or the caller may not find it; the message is the same for both.
            StoreError: the tombstones cannot be read.
        """
        self._apply_tombstones()
        rows = self.index.gallery.rows_of([image_id])
        if not len(rows) or not self.index.count(_mask(len(self.index), rows, self._open_rows(context.allowed))):
            raise NotFoundError(f"no image {image_id}: use the image_id of a search hit")
        vector: Embedding = self.index.vectors(rows)[0].astype(np.float32)
        return vector

    def _apply_tombstones(self) -> None:
        """Exclude the images that were erased since the last search."""
        if new_entries := self._tombstones.refresh():
            self.index.tombstone(self._entries.result().images_of(new_entries))

    def _search_batch(self, queries_qd: Embedding, allowed: Mask | None, n: int, scope: Scope) -> list[ShardHits]:
        index, passing = self.index, self._passing(allowed, scope)
        near = self._nearest(queries_qd, n, passing, scope.group_by)
        # Whether a query is out of distribution does not depend on its filter.
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
                total_shards=self._total_shards,
            )
            for rows, distances, nearest in zip(near.rows_qk, near.distances_qk, first.distances_qk[:, 0], strict=True)
        ]

    def _nearest(self, queries_qd: Embedding, n: int, passing: Mask | None, group_by: GroupBy) -> Neighbours:
        if group_by == "none":
            return self.index.search(queries_qd, n, passing)
        return search_groups(self.index, queries_qd, n, self._groups_by(group_by), passing)

    def _groups_of(self, rows: npt.NDArray[np.int64], group_by: GroupBy) -> list[str | None] | None:
        return None if group_by == "none" else self.index.gallery.values(GROUP_COLUMNS[group_by], rows)

    def _passing(self, allowed: Mask | None, scope: Scope) -> Mask | None:
        """Return a mask of the allowed images in a scope, or ``allowed`` itself if the scope excludes nothing."""
        masks = [] if scope.where == Where() else [self._mask_of(scope.where)]
        if scope.exclude_patient is not None:
            masks.append(~self._mask_of(Where(patient=(scope.exclude_patient,))))
        if scope.exclude_image is not None:
            other_images = np.ones(len(self.index), dtype=bool)
            other_images[self.index.gallery.rows_of([scope.exclude_image])] = False
            masks.append(other_images)
        if not masks:
            return allowed
        return functools.reduce(np.logical_and, masks if allowed is None else [allowed, *masks])

    def _read_groups(self, group_by: GroupBy) -> Groups:
        return groups_from_codes(self.index.gallery.codes(GROUP_COLUMNS[group_by]))


def _mask(size: int, rows: npt.NDArray[np.int64], allowed: Mask | None) -> Mask:
    mask = np.zeros(size, dtype=bool)
    mask[rows] = True
    return mask if allowed is None else mask & allowed


def _places_with_equal_masks(contexts: list[RequestContext], scopes: list[Scope]) -> list[list[int]]:
    places: dict[tuple[int, Scope], list[int]] = {}
    for place, (context, scope) in enumerate(zip(contexts, scopes, strict=True)):
        places.setdefault((id(context.allowed), scope), []).append(place)
    return list(places.values())


class _EntryLookup:
    """Finds the open images that tombstone entries forbid, by the first 64 bits of each image's entry."""

    def __init__(self, image_ids: Sequence[str]) -> None:
        self._ids = np.array(image_ids, dtype="S32")
        heads = np.fromiter((_head(entry_of(ident)) for ident in image_ids), dtype=np.uint64, count=len(image_ids))
        self._order = np.argsort(heads, kind="stable")
        self._heads = heads[self._order]

    def images_of(self, entries: Sequence[str]) -> list[str]:
        """Return the ids of the open images that the entries forbid."""
        images = []
        for entry in entries:
            head = np.uint64(_head(entry))
            start, end = (int(np.searchsorted(self._heads, head, side)) for side in ("left", "right"))
            candidates = self._ids[self._order[start:end]].astype(str).tolist()
            images += [ident for ident in candidates if entry_of(ident) == entry]
        return images


def _head(entry: str) -> int:
    return int(entry[:16], 16)
