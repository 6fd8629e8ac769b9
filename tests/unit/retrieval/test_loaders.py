"""What each stage loads of a release, and which releases share it."""

import json
import shutil

import numpy as np
import pytest
import torch
from tests.unit.releases.test_release import another, remade

from mrcg.errors import ReleaseError, WeightsError
from mrcg.releases.release import promote, read_release
from mrcg.retrieval.loaders import EmbedderLoader, RerankerLoader, SearcherLoader, load_and_check
from mrcg.storage.store import Store

SIDE = 32


@pytest.fixture
def store(library_store, tmp_path):
    return Store(str(shutil.copytree(library_store.root, tmp_path / "store")))


@pytest.fixture
def release(store):
    return read_release(store)


def with_nans(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(float("nan"))


def test_releases_with_the_same_parts_share_them(store, release):
    again = promote(store, another(store, mark=1), None).release
    assert again.number == release.number + 1
    for loader in (
        EmbedderLoader(store),
        EmbedderLoader(store, engine="openvino-int8"),
        SearcherLoader(store),
        RerankerLoader(store),
    ):
        assert loader.key(release) == loader.key(again)


def test_only_int8_depends_on_the_corpus(store, release):
    other = release.model_copy(update={"corpus": "another"})
    assert EmbedderLoader(store).key(release) == EmbedderLoader(store).key(other)
    int8 = EmbedderLoader(store, engine="openvino-int8")
    assert int8.key(release) != int8.key(other)


def test_another_version_is_another_key(store, release):
    encoder = remade(store, "encoders", release.encoder, settings={"mark": 1})
    index = remade(store, "indexes", release.index, settings={"mark": 1})
    other = release.model_copy(update={"encoder": encoder, "index": index, "reranker": "another"})
    for loader in (EmbedderLoader(store), SearcherLoader(store), RerankerLoader(store)):
        assert loader.key(release) != loader.key(other)


@pytest.mark.slow
def test_every_engine_embeds_alike(store, release):
    pixels = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE), dtype=np.uint8)
    embedder = load_and_check(EmbedderLoader(store), release)
    converted = load_and_check(EmbedderLoader(store, engine="openvino", threads=1), release)
    assert (converted.fingerprint, converted.input_size) == (embedder.fingerprint, SIDE)
    assert np.allclose(converted.embed(pixels), embedder.embed(pixels), rtol=1e-3, atol=1e-3)


def test_an_encoder_without_finite_output_is_refused(store, release):
    loader = EmbedderLoader(store)
    embedder = loader.load(release)
    with_nans(embedder.encoder)
    with pytest.raises(ReleaseError, match="non-finite embeddings for a uniform image: retrain it"):
        loader.check(embedder)


def test_parts_have_all_shards_between_them(store, release):
    whole = load_and_check(SearcherLoader(store), release)
    parts = [load_and_check(SearcherLoader(store, part, 2), release) for part in (0, 1)]
    rows = np.concatenate([part.index.gallery.rows for part in parts])
    assert sorted(rows.tolist()) == sorted(whole.index.gallery.rows.tolist())
    assert all(len(part.index.gallery.rows) for part in parts)


def test_a_part_without_images_passes_its_check(store, release):
    empty = load_and_check(SearcherLoader(store, 7, 8), release)
    assert len(empty.index.gallery.rows) == 0


def test_a_reranker_of_another_encoder_is_refused(store, release):
    spec = json.loads(store.artefact("rerankers", release.reranker).read_bytes("reranker.json"))
    changed = json.dumps({**spec, "encoder": "another"}).encode()
    version = remade(store, "rerankers", release.reranker, {"reranker.json": changed}, {"mark": 1})
    with pytest.raises(WeightsError, match="was trained on encoder another"):
        RerankerLoader(store).load(release.model_copy(update={"reranker": version}))


def test_a_reranker_without_finite_scores_is_refused(store, release):
    loader = RerankerLoader(store)
    reranking = loader.load(release)
    with_nans(reranking.scorer.reranker)
    with pytest.raises(ReleaseError, match="scores outside 0 to 1 for a test graph: retrain it"):
        loader.check(reranking)
