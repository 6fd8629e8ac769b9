import functools

import numpy as np
import pytest
from tests.factories import publish, publish_corpus, tiny_config

from mrcg.corpus.features import StoredFeatures, feature_file
from mrcg.corpus.reader import IMAGES, Corpus
from mrcg.corpus.sources import open_source, survey
from mrcg.encoder import embedder as module
from mrcg.encoder.appearance import Appearance
from mrcg.encoder.embedder import Embedder, trunk_features, write_features
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
    files, trunk = {}, functools.partial(trunk_features, encoder, batch_size=BATCH, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", 16)  # some hundred images in life
        for name in corpus.artefact.names(IMAGES):
            with store.writer(f"scratch/{feature_file(name)}") as sink:
                written = write_features(sink, trunk, encoder.spec.input_size, corpus.images_of(name))
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
    assert np.array_equal(whole[: len(corpus)], np.concatenate([stored.of_file(name).rows_nf[:] for name in names]))


def test_only_the_files_of_the_rows_that_are_read_are_opened(made):
    corpus, _, stored = made
    fresh = StoredFeatures(stored._artefact)
    rows = fresh.of_corpus(corpus)
    assert rows[np.array([], dtype=np.int64)].shape == (0, 512)
    assert rows[np.array([1, 0])].shape == (2, 512)
    assert list(fresh._open) == corpus.artefact.names(IMAGES)[:1]


def test_embeddings_made_from_stored_features_are_those_of_the_network(made):
    corpus, encoder, stored = made
    appearance = Appearance(np.zeros(144, dtype=np.float32), np.eye(144, 3, dtype=np.float32))
    for embedder in (Embedder(encoder, ""), Embedder(encoder, "", appearance=appearance)):
        for name in corpus.artefact.names(IMAGES):
            ids, vectors = embedder.embed_images(corpus.images_of(name), BATCH, stored.of_file(name))
            assert ids == [image_id for image_id, _ in corpus.images_of(name)]
            assert np.array_equal(vectors, embedder.embed_images(corpus.images_of(name), BATCH)[1])


def test_without_an_appearance_part_no_image_is_read(made):
    corpus, encoder, stored = made
    name = corpus.artefact.names(IMAGES)[0]

    def unread():
        raise AssertionError("an image is read")
        yield

    ids, _ = Embedder(encoder, "").embed_images(unread(), BATCH, stored.of_file(name))
    assert ids == [image_id for image_id, _ in corpus.images_of(name)]


def test_features_of_other_images_are_an_error_of_ours(made):
    corpus, encoder, stored = made
    one, other = corpus.artefact.names(IMAGES)[:2]
    appearance = Appearance(np.zeros(144, dtype=np.float32), np.eye(144, 3, dtype=np.float32))
    with pytest.raises(AssertionError, match="features of other images"):
        Embedder(encoder, "", appearance=appearance).embed_images(corpus.images_of(one), BATCH, stored.of_file(other))


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
            StoredFeatures(stored._artefact).of_file(name)
    finally:
        path.write_bytes(intact)


def test_a_file_without_images_is_an_error_of_ours(made, tmp_path):
    with (tmp_path / "file").open("wb") as file, pytest.raises(AssertionError, match="holds an image"):
        write_features(HashingFile(file), lambda pixels: pixels, 32, [])
