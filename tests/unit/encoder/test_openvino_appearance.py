"""The appearance part does not depend on the engine that runs the encoder."""

import numpy as np
import pytest

from mrcg.config.loading import load_config
from mrcg.config.settings import AppearanceSettings
from mrcg.encoder.appearance import fit_appearance, thumbnails
from mrcg.encoder.embedder import Embedder
from mrcg.encoder.openvino_embedder import OpenVinoEmbedder
from mrcg.encoder.trainer import new_encoder
from mrcg.metrics.order import exact_copies

pytestmark = pytest.mark.slow

SIDE, DIM = 32, 16


@pytest.fixture(scope="module")
def torch_embedder():
    settings = load_config("demo", [f"encoder.input_size={SIDE}", f"encoder.embedding_dim={DIM}"]).encoder
    encoder = new_encoder(settings, ("a", "b"), 1, None).eval()
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (40, SIDE, SIDE), dtype=np.uint8)
    trained = Embedder(encoder, "ab").embed(pixels)
    return Embedder(encoder, "ab", appearance=fit_appearance(thumbnails(pixels), trained, AppearanceSettings())), pixels


@pytest.mark.parametrize("quantised", [False, True])
def test_an_engine_gives_the_same_appearance_part_and_finds_exact_copies(torch_embedder, quantised):
    embedder, pixels = torch_embedder
    engine = OpenVinoEmbedder(embedder, 1, pixels if quantised else None)
    stored, queries = embedder.embed(pixels).astype(np.float16), engine.embed(pixels[:5])
    assert queries.shape[1] == stored.shape[1] > DIM
    assert (queries[:, DIM:] == embedder.embed(pixels[:5])[:, DIM:]).all()
    copies = exact_copies(queries, np.broadcast_to(stored, (5, *stored.shape)), DIM)
    assert (copies == np.eye(5, 40, dtype=bool)).all()
