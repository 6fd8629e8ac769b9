import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcg.reranker.cross_fitting import cross_fitted, fit_similarity
from mrcg.reranker.graph_table import GraphTable


def rotation(rng, dim):
    return np.linalg.qr(rng.normal(size=(dim, dim)))[0]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), dim=st.integers(1, 6), scale=st.floats(0.2, 5))
def test_fitting_recovers_a_similarity_transform(seed, dim, scale):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40, dim))
    y = scale * x @ rotation(rng, dim) + rng.normal(size=dim)
    assert np.allclose(fit_similarity(x, y).apply(x), y, atol=2e-2)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_no_other_similarity_transform_has_a_smaller_error(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(30, 3))
    best = fit_similarity(x, y)

    def error(scale, rotation_dd, target):
        return np.square(scale * (x - x.mean(0)) @ rotation_dd + target - y).sum()

    best_error = error(best.scale, best.rotation_dd, best.target_d)
    for _ in range(20):
        other = error(rng.uniform(0, 2), rotation(rng, 3), y.mean(0) + rng.normal(size=3) / 10)
        assert best_error <= other + 1e-9


def test_identical_embeddings_are_only_shifted():
    transform = fit_similarity(np.full((4, 2), 3.0), np.full((4, 2), 5.0))
    assert (transform.apply(np.full((1, 2), 3.0)) == 5).all()


def table(queries, neighbours):
    rows = np.array(neighbours)
    return GraphTable(np.array(queries), rows, np.where(rows < 0, np.inf, 1.0).astype(np.float32), rows == 0)


def test_graphs_of_each_fold_refer_to_its_own_embeddings():
    rng = np.random.default_rng(1)
    main = rng.normal(size=(5, 2)).astype(np.float16)
    folds = [
        ((2 * main + 1).astype(np.float16), table([0, 1], [[2, 3, 4], [4, -1, -1]])),
        ((-main).astype(np.float16), table([3], [[0, 2, 1]])),
    ]
    vectors, graphs = cross_fitted(main, folds, seed=1)
    assert (vectors[:5] == main).all()
    # Both spaces are similarity transforms of the first, so all three coincide.
    assert np.allclose(vectors[5:10], main, atol=1e-2) and np.allclose(vectors[10:], main, atol=1e-2)
    assert graphs.queries.tolist() == [5, 6, 13]
    assert graphs.neighbours_qn.tolist() == [[7, 8, 9], [9, -1, -1], [10, 12, 11]]
    assert graphs.relevant_qn.tolist() == [[False] * 3, [False] * 3, [True, False, False]]


def test_only_the_gallery_of_a_fold_determines_its_transform():
    rng = np.random.default_rng(2)
    main, other = (rng.normal(size=(8, 2)).astype(np.float16) for _ in range(2))
    graphs = table([6, 7], [[0, 1, 2], [3, 4, 5]])
    changed = main.copy()
    changed[6:] += 1  # only the queries of the fold
    before, after = (cross_fitted(space, [(other, graphs)], seed=1)[0] for space in (main, changed))
    assert (before[8:] == after[8:]).all()
