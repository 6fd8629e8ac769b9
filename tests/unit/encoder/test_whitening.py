import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.factories import tiny_config

from mrcg.encoder.model import Encoder
from mrcg.encoder.trainer import new_encoder
from mrcg.encoder.vector_statistics import principal_components, spread_of
from mrcg.encoder.whitening import SMOOTHING, fit_whitening, folded

seeds = st.integers(0, 10_000)


def vectors(seed, count=60, dim=6):
    """Correlated vectors whose variances differ by orders of magnitude."""
    draws = np.random.default_rng(seed)
    return (draws.normal(size=(count, dim)) * 10.0 ** np.arange(-1, dim - 1) @ draws.normal(size=(dim, dim))).astype(
        "f4"
    )


@given(seeds, st.integers(1, 6))
def test_whitened_vectors_have_the_same_spread_and_uncorrelated_numbers(seed, components):
    x = vectors(seed)
    whitened = fit_whitening(x, components)(x)
    assert whitened.shape == (60, components)
    assert whitened.mean(axis=0) == pytest.approx(np.zeros(components), abs=1e-4 * spread_of(x))
    assert spread_of(whitened) == pytest.approx(spread_of(x), rel=1e-4)
    covariance = np.atleast_2d(np.cov(whitened.T))
    assert covariance == pytest.approx(np.diag(np.diag(covariance)), abs=1e-4 * covariance.max())


@given(seeds)
def test_a_component_weighs_nearly_the_same_unless_it_hardly_varies(seed):
    x = vectors(seed)
    _, variances, _ = principal_components(x, 6)
    share = variances / (variances + SMOOTHING * variances.mean())
    whitened = fit_whitening(x, 6)(x)
    assert whitened.var(axis=0) / whitened.var() == pytest.approx(share / share.mean(), rel=1e-3)


@given(seeds)
def test_equal_vectors_give_equal_bytes_in_any_layout(seed):
    x = vectors(seed)
    first, second = fit_whitening(x, 4), fit_whitening(np.asfortranarray(x), 4)
    assert first.axes_dc.tobytes() == second.axes_dc.tobytes()


@pytest.mark.parametrize(("count", "components"), [(6, 6), (60, 7)])
def test_components_that_the_vectors_do_not_determine_are_an_error(count, components):
    with pytest.raises(AssertionError):
        fit_whitening(vectors(1, count), components)


def test_equal_vectors_stay_equal_and_others_finite():
    whitening = fit_whitening(np.repeat(vectors(1, 1), 9, axis=0), 4)
    assert (whitening(vectors(1, 1)) == 0).all()
    assert np.isfinite(whitening(vectors(2))).all()


def test_a_folded_encoder_makes_the_whitened_vectors_and_the_same_logits():
    encoder = new_encoder(tiny_config("encoder.embedding_dim=12").encoder, ("a", "b"), 1, None).eval()
    side = encoder.spec.input_size
    images = torch.rand(20, 3, side, side, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        before, logits = encoder(images)
    whitening = fit_whitening(before.numpy(), 5)
    spec, weights = folded(encoder.spec, encoder.state_dict(), whitening)
    narrow = Encoder(spec).eval()
    narrow.load_state_dict(weights)
    with torch.inference_mode():
        after, same_logits = narrow(images)
    assert (encoder.spec.embedding_dim, spec.embedding_dim) == (12, 5)
    assert after.numpy() == pytest.approx(whitening(before.numpy()), rel=1e-3, abs=1e-3 * spread_of(before.numpy()))
    assert torch.equal(logits, same_logits)
