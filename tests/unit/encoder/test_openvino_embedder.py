"""The encoder on OpenVINO gives what it gives on torch."""

import numpy as np
import pytest

from mrcg.config.loading import load_config
from mrcg.encoder.embedder import Embedder, trunk_features
from mrcg.encoder.openvino_embedder import OpenVinoEmbedder, OpenVinoTrunk
from mrcg.encoder.trainer import new_encoder
from mrcg.imaging.phantom import CLASSES, draw_slice
from mrcg.imaging.slices import resize

SIDE, DIM, SCANS = 64, 16, 24

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def torch_embedder():
    settings = load_config("demo", [f"encoder.input_size={SIDE}", f"encoder.embedding_dim={DIM}"]).encoder
    return Embedder(new_encoder(settings, ("a", "b"), 1, None).eval(), "ab")


@pytest.fixture(scope="module")
def pixels():
    drawn = [draw_slice(CLASSES[n % len(CLASSES)], 1, n // 4, n % 4)[0] for n in range(SCANS)]
    return np.stack([resize(grey, SIDE) for grey in drawn])


@pytest.fixture(scope="module")
def fp32(torch_embedder):
    return OpenVinoEmbedder(torch_embedder, 1)


def nearest(vectors):
    distances = np.square(vectors[:, None] - vectors[None]).sum(axis=-1)
    np.fill_diagonal(distances, np.inf)
    return distances.argmin(axis=1)


def test_fp32_gives_the_vectors_of_torch(torch_embedder, fp32, pixels):
    expected = torch_embedder.embed(pixels)
    assert np.allclose(fp32.embed(pixels), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_mirrored_views_are_converted(pixels):
    settings = load_config(
        "demo", [f"encoder.input_size={SIDE}", f"encoder.embedding_dim={DIM}", "encoder.mirror=true"]
    ).encoder
    embedder = Embedder(new_encoder(settings, ("a", "b"), 1, None).eval(), "ab")
    expected = embedder.embed(pixels)
    found = OpenVinoEmbedder(embedder, 1).embed(pixels[:, :, ::-1])
    assert np.allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("mirror", ["false", "true"])
def test_a_trunk_gives_the_features_of_torch_in_any_batches(pixels, mirror):
    settings = load_config("demo", [f"encoder.input_size={SIDE}", f"encoder.mirror={mirror}"]).encoder
    encoder = new_encoder(settings, ("a", "b"), 1, None).eval()
    expected = trunk_features(encoder, pixels, SCANS, "cpu")
    found = OpenVinoTrunk(encoder, 1).features(pixels, 7)
    assert found.dtype == np.float32
    assert np.allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_a_vector_does_not_depend_on_the_rest_of_the_batch(fp32, pixels):
    whole = fp32.embed(pixels)
    assert np.allclose(fp32.embed(pixels, batch_size=5), whole, atol=1e-5)
    assert np.allclose(np.concatenate([fp32.embed(one[None]) for one in pixels]), whole, atol=1e-5)
    assert fp32.embed(pixels[:0]).shape == (0, DIM)


def test_int8_keeps_the_neighbours(torch_embedder, pixels):
    int8 = OpenVinoEmbedder(torch_embedder, 1, pixels).embed(pixels)
    expected = torch_embedder.embed(pixels)
    assert not np.array_equal(int8, expected)
    cosine = (int8 * expected).sum(axis=1) / np.linalg.norm(int8, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.95
    assert np.mean(nearest(int8) == nearest(expected)) > 0.7
