import functools
import io

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcg.index import faiss_backend
from mrcg.index.distances import MANY, exact_distances
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
def test_the_inner_dimension_is_that_of_the_cells(kind, dim):
    shape = shape_of(kind, 1_000_000, dim, 0.95)
    assert faiss.extract_index_ivf(faiss_backend.new_index(shape, 1)).d == shape.inner_dim


def search(index, shape, count, allowed=None, nprobe_or_ef=8, queries=QUERIES):
    return faiss_backend.candidates(index, shape, queries, count, allowed, nprobe_or_ef)


def parameters(kind, count, nprobe_or_ef, selector=None):
    """What FAISS itself is told for the same search."""
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
def test_candidates_are_those_of_faiss_with_the_same_effort(made, kind, nprobe_or_ef):
    distances, rows = search(made[kind], SHAPES[kind], 20, nprobe_or_ef=nprobe_or_ef)
    expected = made[kind].search(QUERIES, 20, params=parameters(kind, 20, nprobe_or_ef))
    assert (rows == expected[1]).all()
    assert (distances == expected[0]).all()


@every_kind
def test_filtered_candidates_are_those_of_faiss(made, kind):
    allowed = np.random.default_rng(3).random(COUNT) < 0.3
    distances, rows = search(made[kind], SHAPES[kind], 20, allowed)
    batch = faiss.IDSelectorBatch(np.flatnonzero(allowed))
    expected = made[kind].search(QUERIES, 20, params=parameters(kind, 20, 8, batch))
    assert (rows == expected[1]).all()
    assert (distances == expected[0]).all()


def edges():
    """Masks that differ where one byte of a bitmap ends and the next begins, and in the last byte, which is not full."""
    for rows in ([0], [7], [8], [7, 8], [15, 16], [63, 64], [COUNT - 1], [COUNT - 4], range(8), range(8, 16), []):
        mask = np.zeros(COUNT, dtype=bool)
        mask[list(rows)] = True
        yield mask
        yield ~mask


@every_kind
def test_exactly_what_is_allowed_is_found_at_the_edges_of_bytes(made, kind):
    for mask in edges():
        rows = search(made[kind], SHAPES[kind], COUNT, mask, COUNT, QUERIES[:2])[1]
        for found in rows:
            assert sorted(found[found >= 0].tolist()) == np.flatnonzero(mask).tolist()


@every_kind
@settings(max_examples=25)
@given(seed=st.integers(0, 1000), share=st.floats(0, 1), count=st.integers(1, 60), nprobe_or_ef=st.integers(1, 30))
def test_nothing_that_is_not_allowed_is_ever_found(made, kind, seed, share, count, nprobe_or_ef):
    mask = np.random.default_rng(seed).random(COUNT) < share
    rows = search(made[kind], SHAPES[kind], count, mask, nprobe_or_ef, QUERIES[:5])[1]
    assert rows.shape == (5, count)
    assert mask[rows[rows >= 0]].all()
    for found in rows:
        real = found[found >= 0]
        assert len(set(real.tolist())) == len(real)
        # What was not found stands at the end.
        assert (found[len(real) :] == -1).all()


@every_kind
def test_an_index_comes_back_from_its_file(made, kind, tmp_path):
    data = written(made[kind])
    (tmp_path / "index.faiss").write_bytes(data)
    back = faiss_backend.make_searchable(faiss_backend.read_index(tmp_path / "index.faiss"), SHAPES[kind])
    assert back.ntotal == COUNT
    for mine, other in zip(search(back, SHAPES[kind], 20), search(made[kind], SHAPES[kind], 20), strict=True):
        assert (mine == other).all()
    assert written(back) == data


@every_kind
def test_an_index_that_came_back_takes_more(made, kind, tmp_path):
    (tmp_path / "index.faiss").write_bytes(written(made[kind]))
    back = faiss_backend.read_index(tmp_path / "index.faiss")
    back.add(QUERIES)
    # A PQ does not tell a vector from one that has its code.
    near = search(back, SHAPES[kind], 5, nprobe_or_ef=16)[1]
    assert all(COUNT + number in rows for number, rows in enumerate(near.tolist()))


@every_kind
def test_a_search_changes_nothing(made, kind):
    before = written(made[kind])
    search(made[kind], SHAPES[kind], 20, np.arange(COUNT) % 3 == 0, 5)
    assert written(made[kind]) == before


@pytest.mark.parametrize("kind", TRAINED)
def test_more_cells_than_there_are_is_all_of_them(made, kind):
    most, more = (search(made[kind], SHAPES[kind], 20, nprobe_or_ef=nprobe_or_ef) for nprobe_or_ef in (16, 10**6))
    assert (most[1] == more[1]).all()


@pytest.mark.parametrize("kind", TRAINED)
def test_training_follows_from_the_seed(kind):
    again, other = (written(faiss_backend.train(SHAPES[kind], VECTORS, seed)) for seed in (1, 6))
    assert again == written(trained(kind))
    assert again != other


@every_kind
@pytest.mark.parametrize("count", [1, 5, 200])
def test_fewer_vectors_than_are_asked_for_are_padded(kind, count):
    rows = search(filled(kind, VECTORS[:count]), SHAPES[kind], count + 7, nprobe_or_ef=16)[1]
    assert (np.sort(rows[:, :count], axis=1) == np.arange(count)).all()
    assert (rows[:, count:] == -1).all()


@given(st.sampled_from(KINDS), st.integers(0, 30_000), st.integers(1, 400), st.sampled_from([0.9, 0.99]))
def test_faiss_takes_every_shape_that_is_planned(kind, count, dim, recall):
    shape = shape_of(kind, count, dim, recall)
    index = faiss_backend.new_index(shape, 2**40)
    assert (index.d, index.ntotal, index.is_trained) == (dim, 0, not shape.trained)
    assert (shape.kind == "flat") == faiss_backend.factory(shape).startswith("Flat")


class Full:
    """A disk with room for so many bytes."""

    def __init__(self, room):
        self.room = room

    def write(self, data):
        if len(data) > self.room:
            raise OSError(28, "No space left on device")
        self.room -= len(data)
        return len(data)


@every_kind
@pytest.mark.parametrize("room", [0, 1000, -1])
def test_a_disk_that_is_full_is_an_error_even_at_the_last_byte(made, kind, room):
    size = len(written(made[kind]))
    with pytest.raises(OSError, match="No space left"):
        faiss_backend.write_index(made[kind], Full(room % size))
    faiss_backend.write_index(made[kind], Full(size))


@pytest.mark.parametrize(("wanted", "given", "threads"), [(3, "2", 3), (0, "2", 2), (1, None, 1)])
def test_threads_are_those_that_are_asked_for_or_that_the_process_was_given(monkeypatch, wanted, given, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    faiss_backend.use_threads(wanted)
    assert faiss.omp_get_max_threads() == threads


@given(st.integers(1, 1100), st.integers(1, 60), st.integers(0, 100), st.none() | st.floats(0, 1))
def test_lists_of_plain_vectors_are_scanned_by_the_routine_of_exact_distances(dim, count, seed, share):
    """An index of them is not looked at again: what FAISS says is the exact distance, whatever else is in the list."""
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
def test_the_own_distances_of_a_flat_index_are_the_exact_ones(dim, count, seed):
    rng = np.random.default_rng(seed)
    vectors = (rng.normal(size=(count, dim)) * 30).astype(np.float16).astype(np.float32)
    queries = (rng.normal(size=(3, dim)) * 30).astype(np.float32)
    rows = rng.integers(-1, count, size=(3, 7))
    index = faiss.IndexFlatL2(dim)
    index.add(vectors)
    found = faiss_backend.own_distances(index, queries, rows)
    expected = np.where(rows >= 0, exact_distances(queries, vectors[np.maximum(rows, 0)]), np.inf)
    assert (found == expected).all()
    assert faiss_backend.own_distances(index, queries[:0], rows[:0]).shape == (0, 7)


@pytest.mark.parametrize("kind", TRAINED)
@given(st.integers(1, 3 * MANY), st.integers(1, 16), st.integers(0, 100))
def test_a_query_finds_the_same_alone_and_among_others(made, kind, count, nprobe_or_ef, seed):
    """Among many, the cells are found by products of matrices."""
    queries = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    distances, rows = search(made[kind], SHAPES[kind], 5, nprobe_or_ef=nprobe_or_ef, queries=queries)
    for place, query in enumerate(queries):
        alone = search(made[kind], SHAPES[kind], 5, nprobe_or_ef=nprobe_or_ef, queries=query[None])
        if kind == "opq_ivf_pq":  # FAISS itself rotates one vector in another order of sums than several
            assert np.allclose(distances[place], alone[0][0], rtol=1e-4)
        else:
            assert (distances[place] == alone[0][0]).all()
            assert (rows[place] == alone[1][0]).all()


@pytest.mark.parametrize("dim", [faiss_backend.SUPER_KMEANS_DIM - 1, faiss_backend.SUPER_KMEANS_DIM, 100])
def test_cells_are_as_good_as_those_that_faiss_learns_by_itself(dim):
    rng = np.random.default_rng(dim)
    vectors = (rng.normal(size=(40, dim))[rng.integers(0, 40, 3000)] + rng.normal(size=(3000, dim)) / 4).astype("f4")
    shape = Shape(kind="ivf_flat", dim=dim, lists=32)
    own, plain = faiss_backend.train(shape, vectors, 1), faiss_backend.new_index(shape, 1)
    plain.train(vectors)
    ours, theirs = (one.quantizer.search(vectors, 1)[0].mean() for one in (own, plain))
    assert ours <= theirs * 1.02
    assert written(faiss_backend.train(shape, vectors, 1)) == written(own)


@pytest.mark.parametrize("dim", [16, 64])
@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.parametrize("scale", [0.01, 1, 1000])
def test_a_vector_that_has_a_cell_for_itself_is_known(kind, scale, dim):
    """An outlier is its own centre: then the cells give it away."""
    vectors = np.tile(VECTORS[:700], (1, dim // DIM)) * np.float32(scale)
    vectors[13] += np.float32(500 * scale)
    shape = SHAPES[kind].model_copy(update={"dim": dim, "pq_bytes": SHAPES[kind].pq_bytes * dim // DIM})
    trained = faiss_backend.train(shape, vectors, 1)
    assert np.flatnonzero(faiss_backend.is_a_cell(trained, shape, vectors)).tolist() == [13]
    assert faiss_backend.is_a_cell(trained, shape, vectors[:0]).tolist() == []
