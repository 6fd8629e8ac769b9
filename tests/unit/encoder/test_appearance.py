import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.factories import tiny_config
from tests.manifests import make_manifest

from mrcg.config.settings import AppearanceSettings
from mrcg.encoder.appearance import (
    FACTS,
    SIDE,
    TENSORS,
    Appearance,
    EmbeddingFacts,
    appearance_files,
    extended,
    facts_in,
    facts_of,
    fit_appearance,
    read_appearance,
    read_facts,
    thumbnails,
)
from mrcg.encoder.spec import SPEC, spec_bytes
from mrcg.encoder.trainer import new_encoder
from mrcg.encoder.vector_statistics import spread_of

seeds, sides = st.integers(0, 10_000), st.integers(4, 50)


def textures(seed, count, side, top=256):
    """Blocks of random grey levels, so that thumbnails of any side differ."""
    draws = np.random.default_rng(seed)
    coarse = draws.integers(0, top, (count, 4, 4))
    place = np.arange(side) * 4 // side
    fine = coarse[:, place][:, :, place] * 3 // 4 + draws.integers(0, top, (count, side, side)) // 4
    return fine.astype(np.uint8)


def naive_thumbnail(image):
    """Each pixel cut into SIDE x SIDE equal ones, then the mean of each area."""
    side = len(image)
    fine = np.kron(image.astype(np.float64), np.ones((SIDE, SIDE)))
    small = np.array(
        [[fine[side * i : side * (i + 1), side * j : side * (j + 1)].mean() for j in range(SIDE)] for i in range(SIDE)]
    ).reshape(-1)
    return (small - small.mean()) / small.std()


@given(seeds, sides | st.sampled_from([12, 24, 48]))
def test_thumbnails_equal_the_naive_area_means(seed, side):
    images = textures(seed, 2, side)
    made = thumbnails(images)
    assert (made.dtype, made.shape) == (np.float32, (2, SIDE * SIDE))
    for thumbnail, image in zip(made, images, strict=True):
        assert thumbnail == pytest.approx(naive_thumbnail(image), abs=1e-4)
        assert (thumbnail.mean(), thumbnail.std()) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-5))


@given(st.integers(0, 255), st.integers(1, 300))
def test_a_uniform_image_has_zeros(level, side):
    assert (thumbnails(np.full((1, side, side), level, np.uint8)) == 0).all()


@given(seeds, sides, st.sampled_from([1, 2]), st.integers(0, 50))
def test_brightness_and_contrast_do_not_matter_without_clipping(seed, side, contrast, brightness):
    images = textures(seed, 2, side, top=100)
    changed = (contrast * images + brightness).astype(np.uint8)
    assert thumbnails(changed) == pytest.approx(thumbnails(images), abs=1e-4)


def test_thumbnails_of_different_images_differ():
    made = thumbnails(textures(1, 20, 32)).astype(np.float64)
    distances = np.square(made[:, None] - made).sum(axis=-1) + 1e9 * np.eye(20)
    assert distances.min() > 1


def settings(components=6, weight=1.0):
    return AppearanceSettings(components=components, weight=weight)


def trained_parts(seed, count=30, dim=8):
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float16)


@given(seeds, st.integers(1, 10))
def test_components_are_the_principal_components(seed, count):
    draws = np.random.default_rng(seed)
    rotation = np.linalg.qr(draws.normal(size=(10, 10)))[0]
    rows = (draws.normal(size=(40, 10)) * 2.0 ** -np.arange(10) @ rotation + draws.normal(size=10)).astype(np.float32)
    fitted = fit_appearance(rows, trained_parts(seed), settings(count))
    centred = rows.astype(np.float64) - rows.astype(np.float64).mean(axis=0)
    axes = np.linalg.svd(centred)[2][:count].T
    scale = np.linalg.norm(fitted.components_fc, axis=0)
    assert fitted.mean_f == pytest.approx(rows.mean(axis=0), abs=1e-5)
    assert scale == pytest.approx(np.full(count, scale[0]), rel=1e-5), "all axes have the same scale"
    # Both routines are off by more where two variances are nearly equal.
    assert np.abs((fitted.components_fc / scale * axes).sum(axis=0)) == pytest.approx(np.ones(count), abs=1e-4)
    assert (np.take_along_axis(fitted.components_fc, np.abs(fitted.components_fc).argmax(axis=0)[None], 0) > 0).all()


@given(seeds, st.integers(1, 12), st.sampled_from([0.25, 1.0, 3.0]))
def test_the_spread_of_the_fitted_part_is_that_of_the_trained_part_times_the_weight(seed, components, weight):
    images, trained = textures(seed, 30, 20), trained_parts(seed)
    fitted = fit_appearance(thumbnails(images), trained, settings(components, weight))
    assert fitted.dim == components
    assert spread_of(fitted.embed(images)) == pytest.approx(weight * spread_of(trained), rel=1e-4)
    assert fitted.embed(images).mean(axis=0) == pytest.approx(np.zeros(components), abs=1e-4)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_fewer_scans_than_components_give_as_many_dimensions_as_scans(count):
    images, trained = textures(2, count, 24), trained_parts(2)
    fitted = fit_appearance(thumbnails(images), trained, settings(128))
    embedded = fitted.embed(images)
    assert embedded.shape == (count, count)
    assert np.isfinite(fitted.embed(textures(3, 4, 24))).all()
    assert spread_of(embedded) == pytest.approx(spread_of(trained) if count > 1 else 0, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("level", [None, 0, 77])
def test_equal_scans_have_an_appearance_part_of_zeros(level):
    one = textures(4, 1, 30) if level is None else np.full((1, 30, 30), level, np.uint8)
    images = np.repeat(one, 7, axis=0)
    fitted = fit_appearance(thumbnails(images), trained_parts(4), settings())
    assert (fitted.embed(images) == 0).all()
    others = fitted.embed(textures(5, 6, 30))
    assert (np.abs(others) < 100).all()
    assert np.isfinite(others.astype(np.float16)).all()


@given(seeds)
def test_equal_scans_give_equal_bytes_and_their_order_changes_rounding_only(seed):
    rows, trained = thumbnails(textures(seed, 20, 24)), trained_parts(seed)
    fitted = fit_appearance(rows, trained, settings(3))
    assert fit_appearance(rows, trained, settings(3)).to_bytes() == fitted.to_bytes()
    turned = fit_appearance(rows[::-1], trained[::-1], settings(3))
    assert turned.components_fc == pytest.approx(fitted.components_fc, abs=1e-3)


@given(seeds, st.sampled_from([8, 24, 33]))
def test_an_image_alone_and_in_a_batch_has_the_same_bytes(seed, side):
    images = textures(seed, 9, side)
    fitted = fit_appearance(thumbnails(images), trained_parts(seed), settings(8))
    together = fitted.embed(images).astype(np.float16)
    for number in range(len(images)):
        alone = fitted.embed(images[number : number + 1]).astype(np.float16)
        assert alone.tobytes() == together[number : number + 1].tobytes()


def test_embeddings_are_the_trained_part_and_then_the_appearance_part():
    images, trained = textures(6, 5, 24), trained_parts(6, 5).astype(np.float32)
    fitted = fit_appearance(thumbnails(images), trained, settings(3))
    whole = extended(trained, images, fitted)
    assert (whole.dtype, whole.shape) == (np.float32, (5, 11))
    assert (whole[:, :8] == trained).all()
    assert (whole[:, 8:] == fitted.embed(images)).all()
    assert extended(trained, images, None) is trained


@given(seeds, st.integers(1, 20))
def test_bytes_are_read_as_they_were_written(seed, components):
    fitted = fit_appearance(thumbnails(textures(seed, 20, 24)), trained_parts(seed), settings(components))
    again = Appearance.from_bytes(fitted.to_bytes())
    assert again.to_bytes() == fitted.to_bytes()
    for name in ("mean_f", "components_fc"):
        assert getattr(again, name).dtype == np.float32
        assert (getattr(again, name) == getattr(fitted, name)).all()


def facts_written(files):
    return EmbeddingFacts.model_validate_json(files[FACTS])


def test_the_fingerprint_changes_with_the_encoder_and_with_each_tensor():
    fitted = fit_appearance(thumbnails(textures(7, 9, 24)), trained_parts(7), settings(4))
    files = appearance_files(fitted, "ab", 16)
    assert files[TENSORS] == fitted.to_bytes()
    facts = facts_written(files)
    assert (facts.encoder, facts.dim, facts.trained_dim) == ("ab", 20, 16)
    assert appearance_files(fitted, "ab", 16) == files
    other_mean = Appearance(fitted.mean_f + 1, fitted.components_fc)
    other_components = Appearance(fitted.mean_f, 2 * fitted.components_fc)
    others = [(fitted, "ac"), (other_mean, "ab"), (other_components, "ab")]
    made = [facts_written(appearance_files(*other, 16)).fingerprint for other in others]
    assert len({*made, facts.fingerprint, "ab"}) == 5


def test_counts_of_earlier_versions_have_the_trained_part_only():
    def manifest(**counts):
        return make_manifest("embeddings", "v", {}, {}, {**counts, "images": 3}, [])

    old = facts_in(manifest(fingerprint="ab", dim=16))
    assert old == EmbeddingFacts(fingerprint="ab", encoder="ab", dim=16, trained_dim=16)
    new = EmbeddingFacts(fingerprint="cd", encoder="ab", dim=20, trained_dim=16)
    assert facts_in(manifest(**new.model_dump())) == new


def artefact(files):
    """Stand-in for a version in a store."""
    version = SimpleNamespace(version="v1")
    return SimpleNamespace(manifest=version, names=lambda: list(files), read_bytes=files.__getitem__)


def test_vectors_with_an_appearance_part_describe_themselves():
    fitted = fit_appearance(thumbnails(textures(8, 9, 24)), trained_parts(8), settings(4))
    files = appearance_files(fitted, "ab", 16)
    vectors = artefact({**files, "embeddings/00000.arrow": b""})
    assert read_facts(vectors, None) == facts_of(files, None) == facts_written(files)
    assert read_appearance(vectors).to_bytes() == fitted.to_bytes()
    assert json.loads(files[FACTS])["dim"] == 20


def test_vectors_of_earlier_versions_are_described_by_their_encoder():

    spec = new_encoder(tiny_config().encoder, ("a", "b"), 1, None).spec
    vectors, encoder = artefact({"embeddings/00000.arrow": b""}), artefact({SPEC: spec_bytes(spec, "ab")})
    assert read_facts(vectors, encoder) == EmbeddingFacts(fingerprint="ab", encoder="ab", dim=16, trained_dim=16)
    assert read_appearance(vectors) is None
