"""Sharded search equals a single exact index on the same vectors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.making import index_of

from mrcg.index.shard import Neighbours
from mrcg.index.sharded import exact_search, merge, recall_at, shard_of


def gallery(count, dim=6, seed=0, copies=True):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, dim)).astype(np.float16)
    if copies and count > 3:
        vectors[count // 2 :: 5] = vectors[0]  # exact copies: their order must not depend on the shards
    return vectors


def index(vectors, shards, kind="flat"):
    ids = [f"{n:032x}" for n in range(len(vectors))]
    return index_of(vectors, ids, ["a"] * len(ids), ids, shards, kind)


@given(st.integers(1, 60), st.integers(2, 7), st.integers(1, 70), st.integers(0, 5), st.booleans())
def test_sharded_equals_single_exact(count, shards, k, seed, filtered):
    vectors = gallery(count, seed=seed)
    queries = np.concatenate([gallery(4, seed=seed + 1), vectors[:3]]).astype(np.float32)
    allowed = np.random.default_rng(seed).random(count) < 0.4 if filtered else np.ones(count, dtype=bool)
    kept = np.flatnonzero(allowed)
    exact = exact_search(queries, vectors[kept], k)
    expected = np.where(exact >= 0, kept[np.maximum(exact, 0)] if len(kept) else -1, -1)
    found = index(vectors, shards).search(queries, k, allowed if filtered else None)
    assert (found.rows_qk == expected).all()
    for row, distances in zip(found.rows_qk, found.distances_qk, strict=True):
        assert np.isinf(distances[row < 0]).all()
        assert (np.diff(distances[row >= 0]) >= 0).all()


def test_one_shard_and_many_answer_alike():
    vectors = gallery(500, dim=16)
    queries = gallery(20, dim=16, seed=9).astype(np.float32)
    one, many = index(vectors, 1).search(queries, 50), index(vectors, 5).search(queries, 50)
    assert (one.rows_qk == many.rows_qk).all()
    assert (one.distances_qk == many.distances_qk).all()


def test_a_query_alone_and_in_a_batch_are_answered_alike():
    made, queries = index(gallery(300), 2), gallery(64, seed=3).astype(np.float32)
    together = made.search(queries, 20)
    for number in (0, 17, 63):
        alone = made.search(queries[number : number + 1], 20)
        assert (alone.rows_qk[0] == together.rows_qk[number]).all()
        assert (alone.distances_qk[0] == together.distances_qk[number]).all()


def test_a_filtered_approximate_search_finds_all_that_is_allowed():
    vectors = gallery(4000, dim=8, copies=False)
    allowed = np.zeros(4000, dtype=bool)
    allowed[::200] = True
    made = index(vectors, 2, "ivf_flat")
    made.probes = 1
    found = made.search(vectors[:5].astype(np.float32), 50, allowed)
    assert (np.sort(found.rows_qk, axis=1)[:, -20:] == np.flatnonzero(allowed)).all()
    assert (found.rows_qk[:, 20:] == -1).all()


def test_an_approximate_index_has_recall_by_its_probes():
    vectors = gallery(6000, dim=8, copies=False)
    made, exact = index(vectors, 2, "ivf_flat"), exact_search(vectors[:50], vectors, 50)
    recalls = []
    for probes in (1, 16, 64):
        made.probes = probes
        recalls.append(recall_at(made.search(vectors[:50].astype(np.float32), 50).rows_qk, exact))
    assert recalls[0] < recalls[1] <= recalls[2] == 1.0


def test_vectors_are_gathered_by_row():
    vectors = gallery(40)
    rows = np.array([[3, -1], [39, 0]])
    gathered = index(vectors, 3).vectors(rows)
    assert (gathered[0, 0] == vectors[3]).all()
    assert (gathered[0, 1] == 0).all()
    assert (gathered[1] == vectors[[39, 0]]).all()


def test_the_files_of_a_shard_come_back():
    from mrcg.index.shard import Shard, shard_files

    shard = index(gallery(40), 2).shards[1]
    files = shard.to_files(1)
    back = Shard.read(*(files[name] for name in shard_files(1)))
    query = gallery(1, seed=5).astype(np.float32)
    assert (back.search(query, 5, None, 1).rows_qk == shard.search(query, 5, None, 1).rows_qk).all()
    assert back.to_files(1) == files


def test_an_index_that_misses_a_row_is_refused():
    shards = index(gallery(40), 2).shards
    with pytest.raises((AssertionError, IndexError)):
        type(index(gallery(10), 2))(shards[:1], 1)


def test_merging_breaks_ties_by_row():
    def part(rows, distances):
        return Neighbours(np.array([rows]), np.array([distances], dtype=np.float32))

    merged = merge([part([5, 9], [1.0, 2.0]), part([2, 7, -1], [1.0, 2.0, np.inf])], 3)
    assert merged.rows_qk.tolist() == [[2, 5, 7]]


@given(st.text(), st.text(), st.integers(2, 50))
def test_a_shard_follows_from_site_and_id(site, ident, shards):
    assert 0 <= shard_of(site, ident, shards) < shards
    assert shard_of(None, ident, shards) == shard_of("", ident, shards)
