import numpy as np
import pytest
from tests.factories import publish, publish_corpus, tiny_config

from mrcg.corpus.features import StoredFeatures, feature_file
from mrcg.corpus.reader import IMAGES, Corpus
from mrcg.corpus.sources import open_source, survey
from mrcg.encoder import embedder as module
from mrcg.encoder.embedder import Embedder, embed_features, trunk_features, write_features
from mrcg.encoder.trainer import new_encoder
from mrcg.errors import IntegrityError
from mrcg.pipeline.plan import plan
from mrcg.storage.filesystem import HashingFile
from mrcg.storage.store import Store

FROZEN = ("encoder.freeze=convolutions", "encoder.augment=false", "ingest.file_bytes=65536")
BATCH = 8


@pytest.fixture(scope="module")
def made(scans, tmp_path_factory):
    """A corpus of several pixel files, its stored features and the encoder whose trunk made them."""
    store, config = Store(str(tmp_path_factory.mktemp("features") / "store")), tiny_config(*FROZEN)
    steps = {step.stage.kind: step for step in plan(config, survey(open_source(str(scans))), "none")}
    publish_corpus(store, steps["corpus"], scans, config)
    corpus = Corpus(store.artefact("corpus", steps["corpus"].version))
    encoder = new_encoder(config.encoder, corpus.classes, config.seed, None).eval()
    files = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", 16)  # some hundred images in life
        for name in corpus.artefact.names(IMAGES):
            with store.writer(f"scratch/{feature_file(name)}") as sink:
                written = write_features(sink, encoder, corpus.images_of(name), BATCH, "cpu")
            assert written == (len(list(corpus.images_of(name))), 512)
            files[feature_file(name)] = store.read_bytes(f"scratch/{feature_file(name)}")
    publish(store, steps["features"], files, {"images": len(corpus), "width": 512})
    return corpus, encoder, StoredFeatures(store.artefact("features", steps["features"].version))


def test_the_features_of_a_corpus_are_those_of_its_files_in_the_order_of_its_rows(made):
    corpus, encoder, stored = made
    names = corpus.artefact.names(IMAGES)
    assert len(names) > 2
    whole = stored.of_corpus(corpus)
    rows = np.random.default_rng(1).permutation(len(corpus))[:20]
    direct = trunk_features(encoder, corpus.pixels(rows.tolist(), encoder.spec.input_size), BATCH, "cpu")
    assert len(whole) == len(corpus)
    # A batch of other images may be rounded differently.
    assert np.allclose(whole[rows], direct, atol=1e-5)
    assert np.array_equal(whole[: len(corpus)], np.concatenate([stored.of_file(name)[:] for name in names]))


def test_embeddings_made_from_stored_features_are_those_of_the_network(made):
    corpus, encoder, stored = made
    embedder = Embedder(encoder, "")
    for name in corpus.artefact.names(IMAGES):
        ids, vectors = embedder.embed_images(corpus.images_of(name), BATCH, stored.of_file(name))
        assert ids == [image_id for image_id, _ in corpus.images_of(name)]
        assert np.array_equal(vectors, embedder.embed_images(corpus.images_of(name), BATCH)[1])


def test_stored_features_are_used_instead_of_the_pixels(made):
    corpus, encoder, stored = made
    features = stored.of_corpus(corpus)[:5]
    black = np.zeros((5, encoder.spec.input_size, encoder.spec.input_size), dtype=np.uint8)
    assert np.array_equal(
        Embedder(encoder, "").embed(black, BATCH, features), embed_features(encoder, features, 5, "cpu")
    )


def test_a_damaged_file_is_refused(made, tmp_path):
    corpus, _, stored = made
    name = corpus.artefact.names(IMAGES)[0]
    path = stored._artefact.on_disk(feature_file(name))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    intact = path.read_bytes()
    try:
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match="does not match its manifest"):
            stored.of_file(name)
    finally:
        path.write_bytes(intact)


def test_a_file_without_images_is_an_error_of_ours(made, tmp_path):
    with (tmp_path / "file").open("wb") as file, pytest.raises(AssertionError, match="holds an image"):
        write_features(HashingFile(file), made[1], [], BATCH, "cpu")
