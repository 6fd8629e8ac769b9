from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from tests.factories import tiny_config
from tests.trainings import move

from mrcg.encoder.embedder import embed_pixels, trunk_features
from mrcg.encoder.model import Encoder
from mrcg.encoder.trainer import EncoderTrainer, LabelledImages, leave_one_out_map, new_encoder
from mrcg.encoder.vector_statistics import spread_of
from mrcg.encoder.whitening import fit_whitening
from mrcg.errors import IntegrityError, TrainingError
from mrcg.imaging.phantom import CLASSES, phantoms
from mrcg.imaging.slices import resize
from mrcg.training.state import Worker


def images(count, seed=1):
    scans = list(phantoms(count, seed))
    labels = np.array([CLASSES.index(p.label) for p in scans])
    names = [str(n) for n in range(count)]
    return LabelledImages([f"id{n}" for n in names], labels, names, np.stack([resize(p.pixels, 32) for p in scans]))


def trainer(*overrides, validation=8, **options):
    settings = tiny_config(*overrides).encoder
    encoder = new_encoder(settings, CLASSES, 1, None)
    return EncoderTrainer(encoder, settings, 1, images(24), images(validation, seed=2), **options)


def ignore(done, total):
    pass


def same_weights(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_equal_seeds_give_equal_weights():
    first, second = trainer(), trainer()
    assert first.run_epoch(ignore) == second.run_epoch(ignore)
    assert same_weights(first.encoder, second.encoder)


def with_features(encoder, labelled):
    return replace(labelled, features=(trunk_features(encoder, labelled.pixels, 8, "cpu"),))


@pytest.mark.slow
def test_a_frozen_trunks_cached_features_train_the_same_weights():
    overrides = ("encoder.backbone=vgg11", "encoder.head=paper", "encoder.freeze=convolutions", "encoder.mining=explicit",
             "encoder.schedule=constant", "encoder.learning_rate=1e-4", "encoder.dropout=0.0", "encoder.augment=false",
             "encoder.batch_size=16")  # fmt: skip
    plain = trainer(*overrides)
    twin = trainer(*overrides)
    cached = EncoderTrainer(
        twin.encoder, twin.settings, 1, with_features(twin.encoder, twin.train),
        with_features(twin.encoder, twin.validation),
    )  # fmt: skip
    direct = trunk_features(plain.encoder, plain.train.pixels[3:5], 2, "cpu")
    assert np.allclose(cached.train.features[0][3:5], direct, atol=1e-5)
    expected, row = plain.run_epoch(ignore), cached.run_epoch(ignore)
    assert expected["loss"] == pytest.approx(row["loss"], rel=1e-4)
    assert expected["validation_map"] == pytest.approx(row["validation_map"], abs=1e-3)
    # Adam's first steps depend on the sign of the gradient, and a rounding error can flip it where it is near 0.
    close = [torch.isclose(a, b, atol=1e-5).float().mean() for a, b in zip(
        plain.encoder.state_dict().values(), cached.encoder.state_dict().values(), strict=True)]  # fmt: skip
    assert min(close) > 0.97


def test_cached_views_alternate_between_epochs():
    training = trainer(
        "encoder.freeze=convolutions", "encoder.augment=true", "encoder.cached_views=2", "encoder.epochs=3"
    )
    views = tuple(trunk_features(training.encoder, training.train.pixels, 8, "cpu", seed) for seed in (1, 2))
    assert not np.allclose(*views)

    class Spy:
        def __init__(self, name, view):
            self.name, self.view = name, view

        def __getitem__(self, rows):
            seen.append(self.name)
            return self.view[rows]

    seen = []
    views = tuple(Spy(name, view) for name, view in zip("ab", views, strict=True))
    training = EncoderTrainer(
        training.encoder, training.settings, 1, replace(training.train, features=views), training.validation
    )
    epochs = []
    for _ in range(3):
        training.run_epoch(ignore)
        epochs.append("".join(sorted(set(seen))))
        seen.clear()
    assert epochs == ["a", "b", "a"]


@pytest.mark.parametrize("overrides", [
    ("encoder.mining=semi_hard",), ("encoder.mining=hard", "encoder.sampler=class_balanced"),
    ("encoder.loss=contrastive", "encoder.mining=batch_all", "encoder.classification_weight=0"),
    ("encoder.loss=contrastive", "encoder.mining=explicit", "encoder.classification_weight=0"),
])  # fmt: skip
def test_every_loss_and_sampler_learns(overrides):
    training = trainer("encoder.epochs=6", "encoder.augment=false", *overrides)
    branch = training.encoder.branches.classification.weight.clone()
    while not training.finished:
        training.run_epoch(ignore)
    losses = [row["loss"] for row in training.state.history]
    assert np.isfinite(losses).all()
    assert training.state.history[-1]["validation_map"] > 0.4
    unchanged = "encoder.classification_weight=0" in overrides
    assert torch.equal(branch, training.encoder.branches.classification.weight) == unchanged


def test_keep_last_keeps_the_last_epoch():
    training = trainer("encoder.epochs=3", "encoder.keep=last")
    scores = iter([0.9, 0.5, 0.4])
    training.validate = lambda: next(scores)
    while not training.finished:
        training.run_epoch(ignore)
    assert training.state.best_epoch == 2


@pytest.mark.parametrize("mining", ["batch_all", "explicit"])
def test_resuming_gives_the_same_weights_as_an_uninterrupted_run(mining, store):
    straight = trainer(f"encoder.mining={mining}")
    while not straight.finished:
        straight.run_epoch(ignore)
    stopped = trainer(f"encoder.mining={mining}")
    stopped.run_epoch(ignore)
    resumed = trainer(f"encoder.mining={mining}")
    move(store, stopped.state, resumed.state)
    while not resumed.finished:
        resumed.run_epoch(ignore)
    assert same_weights(straight.encoder, resumed.encoder)
    assert straight.state.history == resumed.state.history
    assert straight.state.best_weights() == resumed.state.best_weights()


def test_a_checkpoint_of_another_model_is_rejected(store):
    other = trainer("encoder.embedding_dim=7")
    other.run_epoch(ignore)
    with pytest.raises(IntegrityError, match="does not fit this model"):
        move(store, other.state, trainer().state)


def test_the_best_epoch_is_kept_and_patience_stops():
    training = trainer("encoder.epochs=50", "encoder.patience=2")
    scores = iter([0.1, 0.5, 0.4, 0.3])
    training.validate = lambda: next(scores)
    weights = []
    while not training.finished:
        training.run_epoch(ignore)
        weights.append({k: v.clone() for k, v in training.encoder.state_dict().items()})
    assert (len(training.state.history), training.state.best_epoch) == (4, 1)
    best = safetensors.torch.load(training.state.best_weights())
    assert all(torch.equal(best[k], v) for k, v in weights[1].items())


def test_no_epochs_keep_the_initial_weights():
    training = trainer("encoder.epochs=0")
    assert training.finished
    assert training.state.best_weights()


def test_a_loss_that_is_not_finite_stops_training():
    training = trainer("encoder.learning_rate=1e30", "encoder.schedule=constant")
    with pytest.raises(
        TrainingError, match=r"epoch 0, batch \d+ \(images id\d+(, id\d+){7}\): lower encoder.learning_rate"
    ):
        training.run_epoch(ignore)


def test_workers_share_a_batch():
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            seen.append(len(x))
            return self.model(x)

    trainer(worker=Worker(rank=1, world=2), wrap=Spy).run_epoch(ignore)
    assert sum(seen) == 12


def test_frozen_convolutions_do_not_change():
    training = trainer("encoder.freeze=convolutions", "encoder.head=paper", "encoder.cache_trunk=false")
    before = {k: v.clone() for k, v in training.encoder.trunk.state_dict().items()}
    training.run_epoch(ignore)
    assert all(torch.equal(v, before[k]) for k, v in training.encoder.trunk.state_dict().items())


def test_leave_one_out_excludes_the_querys_own_group():
    vectors = np.array([[0.0], [0.1], [5.0], [5.1]], dtype=np.float32)
    labels = np.array([0, 1, 0, 1])
    assert leave_one_out_map(vectors, labels, ["a", "b", "c", "d"]) < 0.6
    # Every query's nearest image is in its own group and excluded; two of the four then have their own class first.
    assert leave_one_out_map(vectors, labels, ["a", "a", "b", "b"]) == pytest.approx(0.75)


def test_classes_of_one_image_each_form_no_triplet():
    settings = tiny_config("encoder.mining=explicit").encoder
    few = images(4)
    training = EncoderTrainer(new_encoder(settings, CLASSES, 1, None), settings, 1, few, few)
    assert len(set(few.labels.tolist())) == 4
    with pytest.raises(TrainingError, match="no triplet can be formed: training needs a class with two images"):
        training.run_epoch(ignore)


def test_all_workers_use_the_first_workers_score():
    training = trainer(worker=Worker(rank=0, world=1, broadcast=lambda value: 0.25))
    assert training.run_epoch(ignore)["validation_map"] == 0.25


@pytest.mark.parametrize("cached", [False, True])
def test_the_result_of_a_whitened_training_is_a_narrower_encoder(cached):
    overrides = ("encoder.freeze=convolutions", "encoder.augment=false") if cached else ()
    training = trainer("encoder.whiten=3", *overrides)
    if cached:
        features, pixels = with_features(training.encoder, training.train).features, training.train.pixels[:0]
        training.train = replace(training.train, features=features, pixels=pixels)
        training.model = training.encoder.branches
    training.run_epoch(ignore)
    unwhitened = embed_pixels(training.encoder, images(24).pixels, 8, "cpu")
    spec, weights = training.result()
    assert training.result() == (spec, weights)
    assert (spec.embedding_dim, training.settings.embedding_dim) == (3, unwhitened.shape[1])
    encoder = Encoder(spec)
    encoder.load_state_dict(safetensors.torch.load(weights))
    whitened = embed_pixels(encoder, images(24).pixels, 8, "cpu")
    assert spread_of(whitened) == pytest.approx(spread_of(unwhitened), rel=1e-3)
    assert whitened == pytest.approx(fit_whitening(unwhitened, 3)(unwhitened), abs=1e-3 * spread_of(unwhitened))


def test_whitening_needs_more_images_than_numbers():
    trainer("encoder.embedding_dim=32", "encoder.whiten=23")
    with pytest.raises(TrainingError, match="needs more than 24 training scans, and there are 24: lower it or add"):
        trainer("encoder.embedding_dim=32", "encoder.whiten=24")


def test_without_whitening_the_result_is_what_was_trained():
    training = trainer()
    training.run_epoch(ignore)
    assert training.result() == (training.encoder.spec, training.state.best_weights())
