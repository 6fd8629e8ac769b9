"""Searchers that have a part of the shards each, put together, answer as one that has them all."""

import numpy as np
import pytest

from mrcg.index.metadata import Where
from mrcg.releases.release import read_release
from mrcg.retrieval.merge import assemble_hits, merge_hits, rows_to_fetch
from mrcg.retrieval.query import Scope
from mrcg.retrieval.search import RequestContext
from mrcg.retrieval.searcher import Searcher

N = 20
SCOPES = [
    Scope(),
    Scope(group_by="patient"),
    Scope(group_by="study"),
    Scope(where=Where(label=("glioma_tumor",))),
    Scope(where=Where(label=("glioma_tumor", "no_tumor")), group_by="patient"),
]


@pytest.fixture(scope="module")
def version(library_store):
    return read_release(library_store).index


def context(allowed=None):
    return RequestContext("test", allowed, 1e18, 1, "trace")


def together(searchers, query, scope, allowed=None):
    parts = [one.near(query, [context(allowed)], N, [scope])[0] for one in searchers]
    places = merge_hits(parts, N)
    fetched = [
        one.fetch(rows) if rows else None
        for one, rows in zip(searchers, rows_to_fetch(places, len(parts)), strict=True)
    ]
    return assemble_hits(places, parts, fetched)


@pytest.mark.parametrize("scope", SCOPES, ids=["all", "patient", "study", "label", "both"])
@pytest.mark.parametrize("parts", [2, 3])
def test_parts_answer_as_the_whole(library_store, version, scope, parts):
    searcher = Searcher.open(library_store, version)
    searchers = [Searcher.open(library_store, version, part, parts) for part in range(parts)]
    rng = np.random.default_rng(0)
    rows = searcher.index.gallery.rows
    allowed = rng.random(len(searcher.index)) < 0.7
    for mask in (None, allowed):
        for row in rows[::17]:
            query = searcher.index.vectors(np.array([row])).astype(np.float32)
            one, other = (
                searcher.search(query, [context(mask)], N, [scope])[0],
                together(searchers, query, scope, mask),
            )
            assert other.image_ids == one.image_ids
            assert other.facts == one.facts
            assert other.distances == one.distances
            assert (other.vectors_nd == one.vectors_nd).all()
            same = ("nearest", "allowed", "passing", "shards", "total_shards")
            assert [getattr(other, name) for name in same] == [getattr(one, name) for name in same]
