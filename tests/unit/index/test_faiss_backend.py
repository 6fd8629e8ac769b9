import functools
import io

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references import exact_distances

from mrcg.index import faiss_backend
from mrcg.index.distances import MATMUL_QUERIES
from mrcg.index.layout import Shape
from mrcg.index_build.sizing import KINDS, shape_of

DIM, COUNT = 16, 2003
SHAPES = {
    "flat": Shape(kind="flat", dim=DIM),
    "hnsw": Shape(kind="hnsw", dim=DIM, links=16),
    "ivf_flat": Shape(kind="ivf_flat", dim=DIM, lists=16),
    "ivf_sq": Shape(kind="ivf_sq", dim=DIM, lists=16, refine=2),
    "opq_ivf_pq": Shape(kind="opq_ivf_pq", dim=DIM, lists=16, pq_bytes=8, refine=4),
}
TRAINED = [kind for kind, shape in SHAPES.items() if shape.trained]
every_kind = pytest.mark.parametrize("kind", KINDS)
VECTORS = np.random.default_rng(1).normal(size=(COUNT, DIM)).astype(np.float32)
QUERIES = np.random.default_rng(2).normal(size=(30, DIM)).astype(np.float32)


@functools.cache
def trained(kind):
    return faiss_backend.train(SHAPES[kind], VECTORS, 1)


def filled(kind, vectors):
    index = faiss.clone_index(trained(kind)) if kind in TRAINED else faiss_backend.new_index(SHAPES[kind], 1)
    for start in range(0, len(vectors), 1000):
        index.add(vectors[start : start + 1000])
    return index


@pytest.fixture(scope="module")
def made():
    """A filled index of each kind, made once."""
    return {kind: filled(kind, VECTORS) for kind in KINDS}


@pytest.mark.parametrize("dim", [8, 24, 256, 1000])
@pytest.mark.parametrize("kind", TRAINED)
def test_inner_dim_is_the_dimension_of_the_cells(kind, dim):
    shape = shape_of(kind, 1_000_000, dim, 0.95)
    assert faiss.extract_index_ivf(faiss_backend.new_index(shape, 1)).d == shape.inner_dim


def search(index, shape, count, allowed=None, nprobe_or_ef=8, queries=QUERIES):
    return faiss_backend.candidates(index, shape, queries, count, allowed, nprobe_or_ef)


def parameters(kind, count, nprobe_or_ef, selector=None):
    """FAISS's own parameters of the same search."""
    if kind == "flat":
        return faiss.SearchParameters(sel=selector)
    if kind == "hnsw":
        return faiss.SearchParametersHNSW(sel=selector, efSearch=max(nprobe_or_ef, count))
    inner = faiss.SearchParametersIVF(sel=selector, nprobe=nprobe_or_ef)
    return faiss.SearchParametersPreTransform(index_params=inner) if kind == "opq_ivf_pq" else inner


def written(index):
    sink = io.BytesIO()
    faiss_backend.write_index(index, sink)
    return sink.getvalue()


@every_kind
@pytest.mark.parametrize("nprobe_or_ef", [1, 3, 16])
def test_candidates_equal_those_of_faiss_with_the_same_nprobe_or_ef(made, kind, nprobe_or_ef):
    distances, rows = search(made[kind], SHAPES[kind], 20, nprobe_or_ef=nprobe_or_ef)
    expected = made[kind].search(QUERIES, 20, params=parameters(kind, 20, nprobe_or_ef))
    assert (rows == expected[1]).all()
    assert (distances == expected[0]).all()


@every_kind
def test_filtered_candidates_equal_those_of_faiss(made, kind):
    allowed = np.random.default_rng(3).random(COUNT) < 0.3
    distances, rows = search(made[kind], SHAPES[kind], 20, allowed)
    batch = faiss.IDSelectorBatch(np.flatnonzero(allowed))
    expected = made[kind].search(QUERIES, 20, params=parameters(kind, 20, 8, batch))
    assert (rows == expected[1]).all()
    assert (distances == expected[0]).all()


def edges():
    """Masks that differ at byte boundaries of the bitmap and in its last byte, which is not full."""
    for rows in ([0], [7], [8], [7, 8], [15, 16], [63, 64], [COUNT - 1], [COUNT - 4], range(8), range(8, 16), []):
        mask = np.zeros(COUNT, dtype=bool)
        mask[list(rows)] = True
        yield mask
        yield ~mask


@every_kind
def test_filters_are_exact_at_byte_boundaries_of_the_bitmap(made, kind):
    for mask in edges():
        rows = search(made[kind], SHAPES[kind], COUNT, mask, COUNT, QUERIES[:2])[1]
        for found in rows:
            assert sorted(found[found >= 0].tolist()) == np.flatnonzero(mask).tolist()


@every_kind
@settings(max_examples=25)
@given(seed=st.integers(0, 1000), share=st.floats(0, 1), count=st.integers(1, 60), nprobe_or_ef=st.integers(1, 30))
def test_a_row_that_is_not_allowed_is_never_found(made, kind, seed, share, count, nprobe_or_ef):
    mask = np.random.default_rng(seed).random(COUNT) < share
    rows = search(made[kind], SHAPES[kind], count, mask, nprobe_or_ef, QUERIES[:5])[1]
    assert rows.shape == (5, count)
    assert mask[rows[rows >= 0]].all()
    for found in rows:
        real = found[found >= 0]
        assert len(set(real.tolist())) == len(real)
        # Padding comes last.
        assert (found[len(real) :] == -1).all()


@every_kind
def test_an_index_survives_a_round_trip_through_its_file(made, kind, tmp_path):
    data = written(made[kind])
    (tmp_path / "index.faiss").write_bytes(data)
    back = faiss_backend.make_searchable(faiss_backend.read_index(tmp_path / "index.faiss"), SHAPES[kind])
    assert back.ntotal == COUNT
    for mine, other in zip(search(back, SHAPES[kind], 20), search(made[kind], SHAPES[kind], 20), strict=True):
        assert (mine == other).all()
    assert written(back) == data


@every_kind
def test_vectors_can_be_added_to_an_index_read_from_a_file(made, kind, tmp_path):
    (tmp_path / "index.faiss").write_bytes(written(made[kind]))
    back = faiss_backend.read_index(tmp_path / "index.faiss")
    back.add(QUERIES)
    # PQ cannot distinguish vectors that have the same code.
    near = search(back, SHAPES[kind], 5, nprobe_or_ef=16)[1]
    assert all(COUNT + number in rows for number, rows in enumerate(near.tolist()))


@every_kind
def test_a_search_does_not_change_the_index(made, kind):
    before = written(made[kind])
    search(made[kind], SHAPES[kind], 20, np.arange(COUNT) % 3 == 0, 5)
    assert written(made[kind]) == before


@pytest.mark.parametrize("kind", TRAINED)
def test_an_nprobe_above_the_number_of_cells_searches_all_of_them(made, kind):
    most, more = (search(made[kind], SHAPES[kind], 20, nprobe_or_ef=nprobe_or_ef) for nprobe_or_ef in (16, 10**6))
    assert (most[1] == more[1]).all()


@pytest.mark.parametrize("kind", TRAINED)
def test_training_is_determined_by_the_seed(kind):
    # Sums over threads differ in their last bits, and another test may have set the number.
    faiss_backend.use_threads(1)
    first, again, other = (written(faiss_backend.train(SHAPES[kind], VECTORS, seed)) for seed in (1, 1, 6))
    assert first == again != other


@every_kind
@pytest.mark.parametrize("count", [1, 5, 200])
def test_results_are_padded_where_there_are_too_few_vectors(kind, count):
    rows = search(filled(kind, VECTORS[:count]), SHAPES[kind], count + 7, nprobe_or_ef=16)[1]
    assert (np.sort(rows[:, :count], axis=1) == np.arange(count)).all()
    assert (rows[:, count:] == -1).all()


@given(st.sampled_from(KINDS), st.integers(0, 30_000), st.integers(1, 400), st.sampled_from([0.9, 0.99]))
def test_faiss_accepts_every_planned_shape(kind, count, dim, recall):
    shape = shape_of(kind, count, dim, recall)
    index = faiss_backend.new_index(shape, 2**40)
    assert (index.d, index.ntotal, index.is_trained) == (dim, 0, not shape.trained)
    assert (shape.kind == "flat") == faiss_backend.factory(shape).startswith("Flat")


class Full:
    """A disk with room for a number of bytes."""

    def __init__(self, room):
        self.room = room

    def write(self, data):
        if len(data) > self.room:
            raise OSError(28, "No space left on device")
        self.room -= len(data)
        return len(data)


@every_kind
@pytest.mark.parametrize("room", [0, 1000, -1])
def test_a_full_disk_is_an_error_even_at_the_last_byte(made, kind, room):
    size = len(written(made[kind]))
    with pytest.raises(OSError, match="No space left"):
        faiss_backend.write_index(made[kind], Full(room % size))
    faiss_backend.write_index(made[kind], Full(size))


@pytest.mark.parametrize(("count", "given", "threads"), [(3, "2", 3), (0, "2", 2), (1, None, 1)])
def test_thread_count_comes_from_the_argument_or_the_environment(monkeypatch, count, given, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    faiss_backend.use_threads(count)
    assert faiss.omp_get_max_threads() == threads


@given(st.integers(1, 1100), st.integers(1, 60), st.integers(0, 100), st.none() | st.floats(0, 1))
def test_ivf_flat_lists_are_scanned_by_the_routine_of_exact_distances(dim, count, seed, share):
    """Their distances are not computed again, so FAISS's must be exact, whatever else is in the list."""
    rng = np.random.default_rng(seed)
    vectors = (rng.normal(size=(count, dim)) * 30).astype(np.float16).astype(np.float32)
    queries = (rng.normal(size=(5, dim)) * 30).astype(np.float32)
    shape = Shape(kind="ivf_flat", dim=dim, lists=1)
    index = faiss_backend.train(shape, vectors, 1)
    index.add(vectors)
    allowed = None if share is None else rng.random(count) < share
    distances, rows = faiss_backend.candidates(index, shape, queries, count, allowed, 1)
    expected = exact_distances(queries, vectors[np.maximum(rows, 0)])
    assert (distances[rows >= 0] == expected[rows >= 0]).all()


@given(st.integers(1, 1100), st.integers(1, 60), st.integers(0, 100))
def test_flat_distances_are_exact(dim, count, seed):
    rng = np.random.default_rng(seed)
    vectors = (rng.normal(size=(count, dim)) * 30).astype(np.float16).astype(np.float32)
    queries = (rng.normal(size=(3, dim)) * 30).astype(np.float32)
    rows = rng.integers(-1, count, size=(3, 7))
    index = faiss.IndexFlatL2(dim)
    index.add(vectors)
    found = faiss_backend.flat_distances(index, queries, rows)
    expected = np.where(rows >= 0, exact_distances(queries, vectors[np.maximum(rows, 0)]), np.inf)
    assert (found == expected).all()
    assert faiss_backend.flat_distances(index, queries[:0], rows[:0]).shape == (0, 7)


@pytest.mark.parametrize("kind", TRAINED)
@given(st.integers(1, 3 * MATMUL_QUERIES), st.integers(1, 16), st.integers(0, 100))
def test_a_query_finds_the_same_alone_and_in_a_batch(made, kind, count, nprobe_or_ef, seed):
    """In larger batches the cells are found by matrix products."""
    queries = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    distances, rows = search(made[kind], SHAPES[kind], 5, nprobe_or_ef=nprobe_or_ef, queries=queries)
    for place, query in enumerate(queries):
        alone = search(made[kind], SHAPES[kind], 5, nprobe_or_ef=nprobe_or_ef, queries=query[None])
        if kind == "opq_ivf_pq":  # FAISS sums in another order when it rotates a single vector
            assert np.allclose(distances[place], alone[0][0], rtol=1e-4)
        else:
            assert (distances[place] == alone[0][0]).all()
            assert (rows[place] == alone[1][0]).all()


@pytest.mark.parametrize("dim", [faiss_backend.SUPER_KMEANS_DIM - 1, faiss_backend.SUPER_KMEANS_DIM, 100])
def test_cells_are_as_good_as_those_of_faiss_by_default(dim):
    rng = np.random.default_rng(dim)
    vectors = (rng.normal(size=(40, dim))[rng.integers(0, 40, 3000)] + rng.normal(size=(3000, dim)) / 4).astype("f4")
    shape = Shape(kind="ivf_flat", dim=dim, lists=32)
    own, plain = faiss_backend.train(shape, vectors, 1), faiss_backend.new_index(shape, 1)
    plain.train(vectors)
    own_error, plain_error = (index.quantizer.search(vectors, 1)[0].mean() for index in (own, plain))
    assert own_error <= plain_error * 1.02
    assert written(faiss_backend.train(shape, vectors, 1)) == written(own)


@pytest.mark.parametrize("dim", [16, 64])
@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.parametrize("scale", [0.01, 1, 1000])
def test_a_vector_that_is_a_centroid_is_recognised(kind, scale, dim):
    """An outlier becomes a centroid, so the cells contain its vector."""
    vectors = np.tile(VECTORS[:700], (1, dim // DIM)) * np.float32(scale)
    vectors[13] += np.float32(500 * scale)
    shape = SHAPES[kind].model_copy(update={"dim": dim, "pq_bytes": SHAPES[kind].pq_bytes * dim // DIM})
    trained = faiss_backend.train(shape, vectors, 1)
    assert np.flatnonzero(faiss_backend.is_centroid(trained, shape, vectors)).tolist() == [13]
    assert faiss_backend.is_centroid(trained, shape, vectors[:0]).tolist() == []
