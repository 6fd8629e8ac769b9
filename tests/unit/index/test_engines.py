"""Joined parts return the same candidates as one index of all live rows."""

import functools
from functools import partial

import faiss
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.references import exact_distances

from mrcg.index import faiss_backend
from mrcg.index.engines import assemble
from mrcg.index.layout import Shape
from mrcg.index.part import Part
from mrcg.index.vectors import StoredVectors
from mrcg.storage import schemas

DIM, COUNT = 16, 900
SHAPES = {
    "flat": Shape(kind="flat", dim=DIM),
    "hnsw": Shape(kind="hnsw", dim=DIM, links=16),
    "ivf_flat": Shape(kind="ivf_flat", dim=DIM, lists=12),
    "ivf_sq": Shape(kind="ivf_sq", dim=DIM, lists=12),
    "opq_ivf_pq": Shape(kind="opq_ivf_pq", dim=DIM, lists=12, pq_bytes=8),
}
VECTORS = np.random.default_rng(1).normal(size=(COUNT, DIM)).astype(np.float16)
QUERIES = np.random.default_rng(2).normal(size=(20, DIM)).astype(np.float32)
every_kind = pytest.mark.parametrize("kind", SHAPES)
joinable = pytest.mark.parametrize("kind", [kind for kind in SHAPES if kind != "hnsw"])


@functools.cache
def trained(kind):
    return faiss_backend.train(SHAPES[kind], VECTORS.astype(np.float32), 1)


def filled(kind, rows):
    shape = SHAPES[kind]
    index = faiss.clone_index(trained(kind)) if shape.trained else faiss_backend.new_index(shape, 1)
    if len(rows):
        index.add(VECTORS[rows].astype(np.float32))
    return faiss_backend.make_searchable(index, shape)


def rows_table(rows):
    """Table of ``schemas.ROWS``; -1 is a deleted scan."""
    known = [{"image_id": f"{row:032x}", "row": row} if row >= 0 else {"row": None} for row in rows.tolist()]
    return pa.Table.from_pylist(known, schemas.ROWS)


def parts_of(folder, kind, cut, gone=()):
    """Parts as on disk: each holds some rows, including those deleted later."""
    parts = []
    for number, rows in enumerate(cut):
        path = folder / f"{number}.faiss"
        if kind != "flat":
            with path.open("wb") as sink:
                faiss_backend.write_index(filled(kind, rows), sink)
        load = None if kind == "flat" else partial(faiss_backend.read_index, path)
        parts.append(Part(load, VECTORS[rows], rows_table(np.where(np.isin(rows, gone), -1, rows))))
    return parts


def thirds(seed=3):
    """Three parts of unequal size whose rows interleave."""
    of = np.random.default_rng(seed).choice(3, size=COUNT, p=[0.6, 0.3, 0.1])
    return [np.flatnonzero(of == number) for number in range(3)]


GONE = np.random.default_rng(4).permutation(COUNT)[:120]


def engine(folder, kind, cut, gone=()):
    parts = parts_of(folder, kind, cut, gone)
    stored = StoredVectors(parts, DIM)
    return assemble(SHAPES[kind], parts, stored), stored


@joinable
@pytest.mark.parametrize("gone", [(), GONE])
@pytest.mark.parametrize("share", [None, 0.4])
def test_joined_parts_equal_one_index_of_all_live_rows(kind, gone, share, tmp_path):
    joined, stored = engine(tmp_path, kind, thirds(), gone)
    live = np.setdiff1d(np.arange(COUNT), gone)
    assert (stored.rows == live).all()
    allowed = None if share is None else np.random.default_rng(5).random(len(live)) < share
    found = joined.candidates(QUERIES, 40, allowed, 5)
    rough, positions = faiss_backend.candidates(filled(kind, live), SHAPES[kind], QUERIES, 40, allowed, 5)
    assert (found.positions_qc == positions).all()
    assert (found.rough_qc == rough).all()


@every_kind
@pytest.mark.parametrize("cut", [1, 3])
@pytest.mark.parametrize("gone", [(), GONE])
@pytest.mark.parametrize("share", [None, 0.4])
def test_candidates_are_live_allowed_unique_and_have_exact_distances(kind, cut, gone, share, tmp_path):
    made, stored = engine(tmp_path, kind, thirds() if cut == 3 else [np.arange(COUNT)], gone)
    allowed = np.ones(len(stored), bool) if share is None else np.random.default_rng(5).random(len(stored)) < share
    # Deleted rows have position -1, which indexes the last position: that must not make them allowed.
    allowed[-1] = True
    found = made.candidates(QUERIES, 40, None if share is None else allowed, 12)
    for query, positions, exact in zip(QUERIES, found.positions_qc, found.exact_qc, strict=True):
        real = positions[positions >= 0]
        assert len(set(real.tolist())) == len(real) >= 40
        assert allowed[real].all()
        vectors = VECTORS[stored.rows[real]]
        assert (exact[positions >= 0] == exact_distances(query[None], vectors[None])[0]).all()


@every_kind
@pytest.mark.parametrize("cut", [1, 3])
def test_an_engine_does_not_need_the_files_after_loading(kind, cut, tmp_path):
    made, _ = engine(tmp_path, kind, thirds() if cut == 3 else [np.arange(COUNT)], GONE)
    before = made.candidates(QUERIES, 20, None, 12)
    for path in tmp_path.glob("*.faiss"):
        path.write_bytes(b"")
        path.unlink()
    after = made.candidates(QUERIES, 20, None, 12)
    assert (after.positions_qc == before.positions_qc).all()
    assert (after.rough_qc == before.rough_qc).all()


@every_kind
def test_a_mapped_part_returns_the_same_candidates(kind, tmp_path):
    parts = parts_of(tmp_path, kind, [np.arange(COUNT)])
    stored = StoredVectors(parts, DIM)
    loaded, mapped = (
        assemble(SHAPES[kind], parts, stored, stays).candidates(QUERIES, 40, None, 5) for stays in (False, True)
    )
    for one, other in zip(vars(loaded).values(), vars(mapped).values(), strict=True):
        assert (one == other).all()


@every_kind
def test_empty_and_fully_deleted_parts_add_no_candidates(kind, tmp_path):
    nothing, some, rest = np.empty(0, np.int64), np.arange(50), np.arange(50, 300)
    made, stored = engine(tmp_path, kind, [some, nothing, rest], some)
    assert (stored.rows == rest).all()
    found = made.candidates(QUERIES, 10, None, 12)
    assert all((positions >= 0).sum() == 10 for positions in found.positions_qc)


@every_kind
@pytest.mark.parametrize("cut", [[], [np.empty(0, np.int64)], [np.arange(20)]])
def test_an_index_without_live_rows_finds_nothing(kind, cut, tmp_path):
    made, stored = engine(tmp_path, kind, cut, np.arange(20))
    assert len(stored) == 0
    assert (made.candidates(QUERIES, 1, None, 3).positions_qc == -1).all()


@given(
    st.lists(st.integers(0, 40), max_size=5),
    st.floats(0, 1),
    st.integers(0, 100),
    st.lists(st.integers(0, 10**6), min_size=1, max_size=30),
)
def test_positions_are_the_live_rows_in_ascending_order(sizes, share, seed, picks):
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(sum(sizes))
    cut = np.split(numbers, np.cumsum(sizes)[:-1]) if sizes else []
    gone = numbers[rng.random(len(numbers)) < share]
    stored = StoredVectors([Part(None, VECTORS[r], rows_table(np.where(np.isin(r, gone), -1, r))) for r in cut], DIM)
    live = sorted(set(numbers.tolist()) - set(gone.tolist()))
    assert stored.rows.tolist() == live
    place = {row: number for number, row in enumerate(live)}
    for number, rows in enumerate(cut):
        assert stored.positions_of(number).tolist() == [place.get(row, -1) for row in rows.tolist()]
    if live:
        positions = np.array([pick % len(live) for pick in picks], dtype=np.int64)
        expected = VECTORS[stored.rows[positions]]
        assert (stored.fp16(positions) == expected).all()


@given(st.integers(0, 40), st.integers(0, 300), st.integers(1, 3), st.floats(0, 1), st.integers(0, 100))
def test_distances_of_stored_vectors_are_exact(queries, width, cut, share, seed):
    rng = np.random.default_rng(seed)
    of = rng.integers(0, cut, COUNT)
    parts = [Part(None, VECTORS[of == n], rows_table(np.flatnonzero(of == n))) for n in range(cut)]
    vectors = rng.normal(size=(queries, DIM)).astype(np.float32)
    positions = np.where(rng.random((queries, width)) < share, rng.integers(0, COUNT, (queries, width)), -1)
    threads = faiss.omp_get_max_threads()
    found = StoredVectors(parts, DIM).distances(vectors, positions)
    expected = exact_distances(vectors, VECTORS[np.maximum(positions, 0)])
    assert (found == np.where(positions >= 0, expected, np.inf)).all()
    assert faiss.omp_get_max_threads() == threads
