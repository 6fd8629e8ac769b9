from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.making import tiny_config

from mrcg.encoder.embedder import trunk_features
from mrcg.encoder.trainer import EncoderTrainer, LabelledImages, leave_one_out_map, new_encoder
from mrcg.errors import IntegrityError, TrainingError
from mrcg.imaging.phantom import CLASSES, phantoms
from mrcg.imaging.slices import resize
from mrcg.training.state import Worker


def images(count, seed=1):
    made = list(phantoms(count, seed))
    labels = np.array([CLASSES.index(p.label) for p in made])
    names = [str(n) for n in range(count)]
    return LabelledImages([f"id{n}" for n in names], labels, names, np.stack([resize(p.pixels, 32) for p in made]))


def trainer(*overrides, validation=8, **options):
    settings = tiny_config(*overrides).encoder
    encoder = new_encoder(settings, CLASSES, 1, None)
    return EncoderTrainer(encoder, settings, 1, images(24), images(validation, seed=2), **options)


def nothing(done, total):
    pass


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_equal_seeds_give_equal_weights():
    one, two = trainer(), trainer()
    assert one.run_epoch(nothing) == two.run_epoch(nothing)
    assert same(one.encoder, two.encoder)


def with_features(encoder, one):
    return replace(one, features=(trunk_features(encoder, one.pixels, 8, "cpu"),))


def test_a_frozen_trunks_cached_features_train_the_same_weights():
    words = ("encoder.backbone=vgg11", "encoder.head=paper", "encoder.freeze=convolutions", "encoder.mining=explicit",
             "encoder.schedule=constant", "encoder.learning_rate=1e-4", "encoder.dropout=0.0", "encoder.augment=false",
             "encoder.batch_size=4")  # fmt: skip
    plain = trainer(*words)
    twin = trainer(*words)
    cached = EncoderTrainer(
        twin.encoder, twin.settings, 1, with_features(twin.encoder, twin.train),
        with_features(twin.encoder, twin.validation),
    )  # fmt: skip
    direct = trunk_features(plain.encoder, plain.train.pixels[3:5], 2, "cpu")
    assert np.allclose(cached.train.features[0][3:5], direct, atol=1e-5)
    one, two = plain.run_epoch(nothing), cached.run_epoch(nothing)
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
    assert one["validation_map"] == pytest.approx(two["validation_map"], abs=1e-3)
    # Adam's first steps have the sign of the gradient: where that is near 0, a rounding error turns it.
    close = [torch.isclose(a, b, atol=1e-5).float().mean() for a, b in zip(
        plain.encoder.state_dict().values(), cached.encoder.state_dict().values(), strict=True)]  # fmt: skip
    assert min(close) > 0.97


def test_views_of_a_cached_trunk_take_turns():
    made = trainer("encoder.freeze=convolutions", "encoder.augment=true", "encoder.cached_views=2", "encoder.epochs=3")
    views = tuple(trunk_features(made.encoder, made.train.pixels, 8, "cpu", seed) for seed in (1, 2))
    assert not np.allclose(*views)

    class Spy:
        def __init__(self, name, view):
            self.name, self.view = name, view

        def __getitem__(self, rows):
            seen.append(self.name)
            return self.view[rows]

    seen = []
    views = tuple(Spy(name, view) for name, view in zip("ab", views, strict=True))
    made = EncoderTrainer(made.encoder, made.settings, 1, replace(made.train, features=views), made.validation)
    epochs = []
    for _ in range(3):
        made.run_epoch(nothing)
        epochs.append("".join(sorted(set(seen))))
        seen.clear()
    assert epochs == ["a", "b", "a"]


@pytest.mark.parametrize("words", [
    ("encoder.mining=semi_hard",), ("encoder.mining=hard", "encoder.sampler=class_balanced"),
    ("encoder.loss=contrastive", "encoder.mining=batch_all", "encoder.classification_weight=0"),
    ("encoder.loss=contrastive", "encoder.mining=explicit", "encoder.classification_weight=0"),
])  # fmt: skip
def test_every_loss_and_sampler_learns(words):
    made = trainer("encoder.epochs=6", "encoder.augment=false", *words)
    branch = made.encoder.branches.classification.weight.clone()
    while not made.finished:
        made.run_epoch(nothing)
    losses = [row["loss"] for row in made.state.history]
    assert np.isfinite(losses).all()
    assert made.state.history[-1]["validation_map"] > 0.4
    silent = "encoder.classification_weight=0" in words
    assert torch.equal(branch, made.encoder.branches.classification.weight) == silent


def test_the_last_epoch_is_kept_where_that_is_wanted():
    made = trainer("encoder.epochs=3", "encoder.keep=last")
    scores = iter([0.9, 0.5, 0.4])
    made.validate = lambda: next(scores)
    while not made.finished:
        made.run_epoch(nothing)
    assert made.state.best_epoch == 2


@pytest.mark.parametrize("mining", ["batch_all", "explicit"])
def test_resuming_gives_the_weights_of_not_stopping(mining):
    straight = trainer(f"encoder.mining={mining}")
    while not straight.finished:
        straight.run_epoch(nothing)
    stopped = trainer(f"encoder.mining={mining}")
    stopped.run_epoch(nothing)
    resumed = trainer(f"encoder.mining={mining}")
    resumed.state.restore(stopped.state.to_bytes())
    while not resumed.finished:
        resumed.run_epoch(nothing)
    assert same(straight.encoder, resumed.encoder)
    assert straight.state.history == resumed.state.history
    assert straight.state.best_weights() == resumed.state.best_weights()


def test_a_checkpoint_of_another_model_is_refused():
    other = trainer("encoder.embedding_dim=7")
    other.run_epoch(nothing)
    with pytest.raises(IntegrityError, match="does not fit this model"):
        trainer().state.restore(other.state.to_bytes())
    with pytest.raises(IntegrityError):
        trainer().state.restore(b"not a checkpoint at all")


def test_the_best_epoch_is_kept_and_patience_stops():
    made = trainer("encoder.epochs=50", "encoder.patience=2")
    scores = iter([0.1, 0.5, 0.4, 0.3])
    made.validate = lambda: next(scores)
    weights = []
    while not made.finished:
        made.run_epoch(nothing)
        weights.append({k: v.clone() for k, v in made.encoder.state_dict().items()})
    assert (len(made.state.history), made.state.best_epoch) == (4, 1)
    assert all(torch.equal(made.state.best[k], v) for k, v in weights[1].items())


def test_no_epochs_keep_the_initial_weights():
    made = trainer("encoder.epochs=0")
    assert made.finished
    assert made.state.best_weights()


def test_a_loss_that_is_no_number_stops():
    made = trainer("encoder.learning_rate=1e30", "encoder.schedule=constant")
    with pytest.raises(
        TrainingError, match=r"epoch 0, batch \d+ \(images id\d+(, id\d+){7}\): lower encoder.learning_rate"
    ):
        made.run_epoch(nothing)


def test_workers_share_a_batch():
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            seen.append(len(x))
            return self.model(x)

    trainer(worker=Worker(rank=1, world=2), wrap=Spy).run_epoch(nothing)
    assert sum(seen) == 12


def test_frozen_convolutions_do_not_move():
    made = trainer("encoder.freeze=convolutions", "encoder.head=paper", "encoder.cache_trunk=false")
    before = {k: v.clone() for k, v in made.encoder.trunk.state_dict().items()}
    made.run_epoch(nothing)
    assert all(torch.equal(v, before[k]) for k, v in made.encoder.trunk.state_dict().items())


def test_leave_one_out_leaves_out_the_own_group():
    vectors = np.array([[0.0], [0.1], [5.0], [5.1]], dtype=np.float32)
    labels = np.array([0, 1, 0, 1])
    assert leave_one_out_map(vectors, labels, ["a", "b", "c", "d"]) < 0.6
    # Near strangers of one group vanish: what is left first is of the own class.
    assert leave_one_out_map(vectors, labels, ["a", "a", "b", "b"]) == pytest.approx(0.75)


def test_classes_of_one_image_each_give_no_triplet():
    settings = tiny_config("encoder.mining=explicit").encoder
    few = images(4)
    made = EncoderTrainer(new_encoder(settings, CLASSES, 1, None), settings, 1, few, few)
    assert len(set(few.labels.tolist())) == 4
    with pytest.raises(TrainingError, match="no class has two training images"):
        made.run_epoch(nothing)


def test_all_workers_take_the_first_ones_score():
    made = trainer(worker=Worker(rank=0, world=1, agree=lambda value: 0.25))
    assert made.run_epoch(nothing)["validation_map"] == 0.25
