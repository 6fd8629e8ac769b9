import time

import numpy as np
import pyarrow as pa
import pytest

from mrcg.errors import NotFoundError
from mrcg.index import faiss_backend
from mrcg.index.layout import Shape
from mrcg.index.metadata import Where
from mrcg.index.part import Part
from mrcg.index.sharded_index import ShardedIndex
from mrcg.privacy.tombstones import Tombstones, entry_of, tombstone
from mrcg.retrieval.query import Scope
from mrcg.retrieval.search import RequestContext
from mrcg.retrieval.searcher import Searcher
from mrcg.storage import schemas
from mrcg.storage.store import Store

COUNT, DIM = 60, 4
VECTORS = np.random.default_rng(0).normal(size=(COUNT, DIM)).astype(np.float16)
QUERY = VECTORS[:1].astype(np.float32) + 0.01


def image(row):
    return f"{row:032x}"


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


@pytest.fixture
def searcher(store):
    faiss_backend.use_threads(1)
    facts = [
        {
            "image_id": image(row),
            "row": row,
            "label": "ab"[row % 2],
            "group_id": f"g{row // 3}",
            "patient": f"p{row // 3}",
            "study": None if row % 3 else f"s{row // 6}",
            "site": "north",
            "year": 2000 + row % 10,
        }
        for row in range(COUNT)
    ]
    table = pa.Table.from_pylist(facts, schemas.ROWS)
    index = ShardedIndex(Shape(kind="flat", dim=DIM), [Part(None, VECTORS, table)], 0)
    return Searcher(index, Tombstones(store, refresh_seconds=0.0), 1, 2)


def context(allowed=None):
    return RequestContext("me", allowed, time.time() + 10, 1, "trace")


def rows(hits):
    return [int(image_id, 16) for image_id in hits.image_ids]


def by_distance(kept):
    distances = ((VECTORS.astype(np.float32) - QUERY) ** 2).sum(axis=1)
    return sorted(kept, key=lambda row: (distances[row], row))


def ask(searcher, scope=Scope(), allowed=None, n=10):
    return searcher.search(QUERY, [context(allowed)], n, [scope])[0]


def test_a_filter_returns_the_nearest_images_that_pass(searcher):
    found = ask(searcher, Scope(Where(label=("b",), years=(2000, 2004))))
    kept = [row for row in range(COUNT) if row % 2 and row % 10 <= 4]
    assert rows(found) == by_distance(kept)[:10]
    assert (found.allowed, found.passing) == (COUNT, len(kept))
    assert {facts.label for facts in found.facts} == {"b"}


def test_policy_and_filter_are_combined(searcher):
    allowed = np.arange(COUNT) < 20
    found = ask(searcher, Scope(Where(label=("a",))), allowed, n=COUNT)
    assert rows(found) == by_distance(list(range(0, 20, 2)))
    assert (found.allowed, found.passing) == (20, 10)


def test_a_patient_and_the_query_itself_can_be_left_out(searcher):
    found = ask(searcher, Scope(exclude_patient="p0", exclude_image=image(5)), n=COUNT)
    assert rows(found) == by_distance([row for row in range(3, COUNT) if row != 5])
    assert rows(ask(searcher, Scope(exclude_patient="nobody"), n=COUNT)) == by_distance(range(COUNT))


@pytest.mark.parametrize(("group_by", "group"), [("patient", lambda row: row // 3), ("study", None)])
def test_grouping_returns_one_image_of_each_group(searcher, group_by, group):
    def study(row):
        return f"alone {row}" if row % 3 else row // 6

    seen, expected = set(), []
    for row in by_distance(range(COUNT)):
        group_id = (group or study)(row)
        if group_id not in seen:
            seen.add(group_id)
            expected.append(row)
    assert rows(ask(searcher, Scope(group_by=group_by), n=15)) == expected[:15]


def test_how_far_the_nearest_is_does_not_depend_on_the_filter(searcher):
    everything, filtered = ask(searcher), ask(searcher, Scope(Where(label=("b",))))
    assert filtered.nearest == everything.nearest == everything.distances[0]
    assert filtered.distances[0] > filtered.nearest
    assert ask(searcher, allowed=np.zeros(COUNT, bool)).nearest is None


def test_a_batch_gives_the_same_hits_as_single_searches(searcher):
    scopes = [Scope(), Scope(Where(label=("a",))), Scope(), Scope(group_by="patient")]
    contexts = [context(), context(), context(np.arange(COUNT) > 30), context()]
    together = searcher.search(np.repeat(QUERY, 4, axis=0), contexts, 8, scopes)
    single = [searcher.search(QUERY, [c], 8, [scope])[0] for c, scope in zip(contexts, scopes, strict=True)]
    assert [rows(hits) for hits in together] == [rows(hits) for hits in single]
    assert {(hits.shards, hits.total_shards) for hits in together} == {(1, 2)}


def test_an_erased_image_is_neither_found_nor_counted_nor_looked_up(searcher, store):
    nearest = rows(ask(searcher))[0]
    assert (searcher.look_up(context(), image(nearest)) == VECTORS[nearest].astype(np.float32)).all()
    tombstone(store, [entry_of(image(nearest))])
    found = ask(searcher)
    assert nearest not in rows(found)
    assert found.allowed == COUNT - 1
    with pytest.raises(NotFoundError, match=f"no image {image(nearest)}"):
        searcher.look_up(context(), image(nearest))


@pytest.mark.parametrize("image_id", ["nobody", image(40)])
def test_a_missing_and_a_forbidden_image_give_the_same_error(searcher, image_id):
    with pytest.raises(NotFoundError, match=f"no image {image_id}: use the image_id"):
        searcher.look_up(context(np.arange(COUNT) < 40), image_id)
