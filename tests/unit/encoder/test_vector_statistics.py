import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.encoder.vector_statistics import principal_components, spread_of

seeds = st.integers(0, 10_000)


def vectors(seed, count=30, dim=5):
    draws = np.random.default_rng(seed)
    return (draws.normal(size=(count, dim)) @ draws.normal(size=(dim, dim))).astype(np.float32)


def test_spread_is_the_root_of_the_mean_squared_distance_from_the_mean():
    rows = vectors(3, 7, 4).astype(np.float64)
    mean = sum(rows) / 7
    assert spread_of(rows) == pytest.approx(np.sqrt(sum(((row - mean) ** 2).sum() for row in rows) / 7))
    assert spread_of(np.empty((0, 4))) == 0


@given(seeds, st.integers(1, 9), st.integers(1, 12))
def test_components_are_orthogonal_in_decreasing_order_with_a_positive_largest_entry(seed, count, rows):
    x = vectors(seed, rows)
    mean, variances, axes = principal_components(x, count)
    kept = min(count, rows, 5)
    assert mean == pytest.approx(x.astype(np.float64).mean(axis=0))
    assert (variances.shape, axes.shape) == ((kept,), (5, kept))
    assert (np.diff(variances) <= 0).all()
    assert (variances >= 0).all()
    assert axes.T @ axes == pytest.approx(np.eye(kept), abs=1e-9)
    assert (np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], 0) > 0).all()


@given(seeds)
def test_a_variance_is_that_of_the_vectors_along_its_axis(seed):
    x = vectors(seed)
    mean, variances, axes = principal_components(x, 5)
    assert ((x - mean) @ axes).var(axis=0) == pytest.approx(variances, rel=1e-6, abs=1e-9)
