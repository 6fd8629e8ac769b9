"""Sharded search equals a single exact one on the same vectors, whatever is filtered and whatever is buried."""

from unittest import mock

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.factories import index_of
from tests.references import exact_distances

from mrcg.hashing import digest
from mrcg.index import faiss_backend, sharded_index
from mrcg.index.distances import Neighbours, exact_search, merge, nearest, recall_at
from mrcg.index.layout import PartFacts, Shape, part_files
from mrcg.index.part import Part
from mrcg.index.sharded_index import ShardedIndex
from mrcg.storage import schemas

#: Cells or breadth that leaves nothing out.
ALL = 10**6


@pytest.fixture(autouse=True)
def _one_thread():
    # Small work is not done sooner by several, and on a busy machine they wait for each other.
    faiss_backend.use_threads(1)


def gallery(count, dim=6, seed=0, copies=True):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, dim)).astype(np.float16)
    if copies and count > 3:
        vectors[count // 2 :: 5] = vectors[0]  # exact copies: their order must not depend on the shards
    return vectors


def name(row):
    return digest(["scan", row], 32)


def index(vectors, shards, kind="flat"):
    ids = [name(row) for row in range(len(vectors))]
    made = index_of(vectors, ids, ["a"] * len(ids), ids, shards, kind)
    assert len(made.parts) == shards
    return made


def of_shape(vectors, shards, shape):
    """An index of any shape, for the kinds that are planned for more vectors than a test has."""
    trained, parts = faiss_backend.train(shape, vectors.astype(np.float32), 1), []
    for part in index(vectors, shards).parts:
        filled = faiss.clone_index(trained)
        filled.add(part.vectors_nd.astype(np.float32))
        parts.append(Part(lambda mapped, filled=filled: faiss.clone_index(filled), part.vectors_nd, part.table))
    return ShardedIndex(shape, parts, 1)


def by_hand(queries, vectors, allowed, k):
    """(q, k) rows and distances: every allowed vector is looked at, they are sorted, ties by row."""
    rows, distances = np.full((len(queries), k), -1), np.full((len(queries), k), np.inf, dtype=np.float32)
    kept = np.flatnonzero(allowed)
    for place, query in enumerate(queries):
        each = exact_distances(query[None], vectors[kept][None])[0]
        first = np.lexsort((kept, each))[:k]
        rows[place, : len(first)], distances[place, : len(first)] = kept[first], each[first]
    return rows, distances


def same(found, expected):
    return (found.rows_qk == expected[0]).all() and (found.distances_qk == expected[1]).all()


def some_of(count, seed, share):
    return np.random.default_rng(seed).random(count) < share


@given(
    *(st.integers(1, 60), st.integers(1, 9), st.integers(1, 70), st.integers(0, 20)),
    *(st.none() | st.floats(0, 1), st.floats(0, 0.6)),
)
def test_sharded_equals_single_exact(count, shards, k, seed, share, gone):
    vectors = gallery(count, seed=seed)
    queries = np.concatenate([gallery(4, seed=seed + 1), vectors[:3]]).astype(np.float32)
    allowed = None if share is None else some_of(count, seed, share)
    buried = some_of(count, seed + 50, gone)
    made = index(vectors, shards)
    made.tombstone([name(row) for row in np.flatnonzero(buried).tolist()])
    reached = ~buried if allowed is None else allowed & ~buried
    assert same(made.search(queries, k, allowed), by_hand(queries, vectors, reached, k))


@given(
    *(st.integers(80, 300), st.integers(1, 9), st.sampled_from([1, 10, 50, 400]), st.integers(0, 20)),
    *(st.none() | st.floats(0, 1), st.floats(0, 0.6), st.sampled_from(["ivf_flat", "hnsw"])),
    st.sampled_from([0, sharded_index.SCAN_BELOW]),
)
def test_an_approximate_search_that_leaves_nothing_out_is_exact(count, shards, k, seed, share, gone, kind, scan_below):
    vectors = gallery(count, seed=seed, copies=False)
    queries = np.concatenate([gallery(4, seed=seed + 1), vectors[:3]]).astype(np.float32)
    allowed = None if share is None else some_of(count, seed, share)
    buried = some_of(count, seed + 50, gone)
    made = index(vectors, shards, kind)
    made.tombstone([name(row) for row in np.flatnonzero(buried).tolist()])
    reached = ~buried if allowed is None else allowed & ~buried
    with mock.patch.object(sharded_index, "SCAN_BELOW", scan_below):
        found = made.search(queries, k, allowed, ALL)
    assert made.shape.kind == kind
    assert same(found, by_hand(queries, vectors, reached, k))


@pytest.mark.parametrize("kind", ["ivf_sq", "opq_ivf_pq"])
@pytest.mark.parametrize("shards", [1, 4])
def test_a_coarse_code_only_brings_candidates_and_all_of_them_are_exact(kind, shards, monkeypatch):
    monkeypatch.setattr(sharded_index, "SCAN_BELOW", 0)
    vectors = gallery(400, dim=8, copies=False)
    # So many candidates for each wanted one that all vectors are ordered by their exact distance.
    made = of_shape(vectors, shards, Shape(kind=kind, dim=8, lists=4, pq_bytes=8, refine=40))
    queries = gallery(9, dim=8, seed=3).astype(np.float32)
    assert same(made.search(queries, 10, None, ALL), by_hand(queries, vectors, np.ones(400, bool), 10))
    allowed = some_of(400, 1, 0.3)
    assert same(made.search(queries, 10, allowed, ALL), by_hand(queries, vectors, allowed, 10))


@given(
    *(st.integers(80, 300), st.integers(1, 6), st.integers(1, 80), st.integers(0, 20)),
    *(st.floats(0, 1), st.integers(1, 4), st.sampled_from(["ivf_flat", "ivf_sq", "hnsw"])),
    st.sampled_from([0, sharded_index.SCAN_BELOW]),
)
def test_a_filtered_approximate_search_finds_as_many_as_are_allowed(
    count, shards, k, seed, share, nprobe_or_ef, kind, scan_below
):
    vectors, allowed = gallery(count, seed=seed, copies=False), some_of(count, seed, share)
    queries = gallery(5, seed=seed + 1).astype(np.float32)
    with mock.patch.object(sharded_index, "SCAN_BELOW", scan_below):
        found = index(vectors, shards, kind).search(queries, k, allowed, nprobe_or_ef)
    want = min(k, int(allowed.sum()))
    assert ((found.rows_qk >= 0).sum(axis=1) == want).all()
    assert allowed[found.rows_qk[found.rows_qk >= 0]].all()
    for query, rows, distances in zip(queries, found.rows_qk, found.distances_qk, strict=True):
        real = rows[rows >= 0]
        assert len(set(real.tolist())) == want
        # However it was found, a distance is the exact one.
        assert (distances[:want] == exact_distances(query[None], vectors[real][None])[0]).all()
        assert (np.diff(distances[:want]) >= 0).all()
        assert np.isinf(distances[want:]).all()


def test_a_filtered_approximate_search_finds_all_that_is_allowed():
    vectors = gallery(4000, dim=8, copies=False)
    allowed = np.zeros(4000, dtype=bool)
    allowed[::200] = True
    found = index(vectors, 2, "ivf_flat").search(vectors[:5].astype(np.float32), 50, allowed, 1)
    assert (np.sort(found.rows_qk, axis=1)[:, -20:] == np.flatnonzero(allowed)).all()
    assert (found.rows_qk[:, 20:] == -1).all()


def test_scans_are_spread_over_all_shards():
    assert all(60 < len(part) < 140 for part in index(gallery(500), 5).parts)


def test_one_shard_and_many_answer_alike():
    vectors = gallery(500, dim=16)
    queries = gallery(20, dim=16, seed=9).astype(np.float32)
    one, many = index(vectors, 1).search(queries, 50), index(vectors, 5).search(queries, 50)
    assert (one.rows_qk == many.rows_qk).all()
    assert (one.distances_qk == many.distances_qk).all()


@pytest.mark.parametrize("kind", ["flat", "ivf_flat"])
@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("queries", [4, 40])
def test_of_many_copies_those_of_the_lowest_rows_are_found(kind, shards, queries):
    """More copies than candidates: blank slices are many, and all alike."""
    vectors = gallery(600, dim=8, copies=False)
    vectors[100:500:2] = vectors[0]
    asked = np.concatenate([vectors[:1], gallery(queries, dim=8, seed=4)]).astype(np.float32)
    found = index(vectors, shards, kind).search(asked, 50, None, ALL)
    assert same(found, by_hand(asked, vectors, np.ones(600, bool), 50))
    assert found.rows_qk[0].tolist() == [0, *range(100, 198, 2)]


def test_a_query_alone_and_in_a_batch_are_answered_alike():
    made, queries = index(gallery(300), 2), gallery(64, seed=3).astype(np.float32)
    together = made.search(queries, 20)
    for number in (0, 17, 63):
        alone = made.search(queries[number : number + 1], 20)
        assert (alone.rows_qk[0] == together.rows_qk[number]).all()
        assert (alone.distances_qk[0] == together.distances_qk[number]).all()


@pytest.mark.parametrize("kind", ["flat", "ivf_flat", "hnsw"])
def test_batches_and_blocks_do_not_show(kind, monkeypatch):
    made, queries = index(gallery(700, dim=8), 3, kind), gallery(30, dim=8, seed=3)
    allowed = some_of(700, 1, 0.5)
    whole = made.search(queries, 20), made.search(queries, 20, allowed), made.exact(queries, 20)
    monkeypatch.setattr(sharded_index, "BATCH", 7)
    monkeypatch.setattr(sharded_index, "BLOCK", 33)
    for before, after in zip(
        whole, (made.search(queries, 20), made.search(queries, 20, allowed), made.exact(queries, 20)), strict=True
    ):
        assert (after.rows_qk == before.rows_qk).all()
        assert (after.distances_qk == before.distances_qk).all()


def test_shards_that_are_open_in_several_places_answer_together_as_one():
    vectors, queries = gallery(300), gallery(6, seed=3).astype(np.float32)
    whole = index(vectors, 5)
    groups = [ShardedIndex(whole.shape, whole.parts[start::2], 0) for start in (0, 1)]
    allowed = some_of(300, 2, 0.5)
    for mask in (None, allowed):
        together = whole.search(queries, 20, mask)
        found = merge([group.search(queries, 20, None if mask is None else mask[: len(group)]) for group in groups], 20)
        assert same(found, (together.rows_qk, together.distances_qk))


def test_an_approximate_index_has_recall_by_its_effort():
    vectors = gallery(6000, dim=8, copies=False)
    made, exact = index(vectors, 2, "ivf_flat"), exact_search(vectors[:50], vectors, 50)
    recalls = [
        recall_at(made.search(vectors[:50].astype(np.float32), 50, None, nprobe_or_ef).rows_qk, exact)
        for nprobe_or_ef in (1, 16, ALL)
    ]
    assert recalls[0] < recalls[1] <= recalls[2] == 1.0


def test_what_recall_is_measured_of_is_neither_scanned_nor_completed():
    vectors = gallery(300, copies=False)
    made = index(vectors, 2, "ivf_flat")
    (few,), (all_of_them,) = made.candidates(vectors[:9], 50, 1), made.candidates(vectors[:9], 50, ALL)
    assert (few.positions_qc == -1).any()
    assert (made.search(vectors[:9], 50, None, 1).rows_qk >= 0).all()
    assert same(
        nearest(all_of_them.positions_qc, all_of_them.exact_qc, 50),
        by_hand(vectors[:9], vectors, np.ones(300, bool), 50),
    )


def test_what_is_buried_stays_so_and_what_nobody_knows_is_left_out():
    made, query = index(gallery(40, copies=False), 3), gallery(1).astype(np.float32)
    first = made.search(query, 40).rows_qk[0].tolist()
    made.tombstone([name(first[0]), "f" * 32])
    assert made.search(query, 40).rows_qk[0].tolist() == [*first[1:], -1]
    made.tombstone([name(first[2])])
    made.tombstone([])
    assert made.search(query, 3).rows_qk[0].tolist() == [first[1], first[3], first[4]]
    assert made.search(query, 2, np.arange(40) == first[0]).rows_qk[0].tolist() == [-1, -1]


@pytest.mark.parametrize("kind", ["flat", "ivf_flat", "hnsw"])
def test_nothing_is_found_where_nothing_is_allowed(kind):
    made, queries = index(gallery(100), 3, kind), gallery(5, seed=1)
    found = made.search(queries, 10, np.zeros(100, bool))
    assert (found.rows_qk == -1).all()
    assert np.isinf(found.distances_qk).all()
    assert made.search(queries[:0], 10).rows_qk.shape == (0, 10)


def test_an_empty_index_finds_nothing():
    made = index(gallery(0), 2)
    assert (made.search(np.zeros((2, 6)), 3).rows_qk == -1).all()
    assert (made.exact(np.zeros((2, 6)), 3).rows_qk == -1).all()
    assert (made.vectors(np.full((2, 3), -1)) == 0).all()


def test_vectors_are_gathered_by_row():
    vectors = gallery(40)
    rows = np.array([[3, -1], [39, 0]])
    whole = index(vectors, 3)
    gathered = whole.vectors(rows)
    assert (gathered[0, 0] == vectors[3]).all()
    assert (gathered[0, 1] == 0).all()
    assert (gathered[1] == vectors[[39, 0]]).all()
    for part in whole.parts:
        some = ShardedIndex(whole.shape, [part], 0)
        here = np.isin(np.arange(40), part.rows)
        assert (some.vectors(np.arange(40)) == np.where(here[:, None], vectors, 0)).all()


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf_flat"])
def test_the_files_of_parts_come_back(kind, tmp_path):
    vectors = gallery(300, copies=False)
    whole = index(vectors, 3, kind)
    for folder in ("parts", "rows"):
        (tmp_path / folder).mkdir()
    parts = []
    for number, part in enumerate(index(vectors, 3, kind).parts):
        files = part_files(str(number))
        (tmp_path / files.vectors).write_bytes(part.vectors_nd.tobytes())
        (tmp_path / files.rows).write_bytes(schemas.to_ipc(part.table))
        if part.load is not None:
            shape = whole.shape
            filled = (
                faiss_backend.train(shape, vectors.astype(np.float32), 1)
                if shape.trained
                else faiss_backend.new_index(shape, 1)
            )
            filled.add(part.vectors_nd.astype(np.float32))
            with (tmp_path / files.index).open("wb") as sink:
                faiss_backend.write_index(filled, sink)
        facts = PartFacts(shard=number, name=str(number), rows=len(part), live=len(part))
        parts.append(Part.open(tmp_path.joinpath, whole.shape, facts))
    queries = gallery(9, seed=5).astype(np.float32)
    back = ShardedIndex(whole.shape, parts, 2).search(queries, 20, None, 3)
    found = whole.search(queries, 20, None, 3)
    assert same(back, (found.rows_qk, found.distances_qk))


def test_a_part_whose_files_do_not_belong_together_is_refused():
    part = index(gallery(40), 2).parts[0]
    with pytest.raises(AssertionError):
        Part(part.load, part.vectors_nd[1:], part.table)


def test_merging_breaks_ties_by_row():
    def part(rows, distances):
        return Neighbours(np.array([rows]), np.array([distances], dtype=np.float32))

    merged = merge([part([5, 9], [1.0, 2.0]), part([2, 7, -1], [1.0, 2.0, np.inf])], 3)
    assert merged.rows_qk.tolist() == [[2, 5, 7]]
