"""The demo's phantoms are hard enough to need training and easy enough to be learned by its recipe."""

import numpy as np
import pytest

from mrcg.config.loading import load_config
from mrcg.encoder.embedder import embed_pixels
from mrcg.encoder.trainer import EncoderTrainer, LabelledImages, new_encoder
from mrcg.imaging.phantom import CLASSES, phantoms
from mrcg.imaging.slices import resize
from mrcg.metrics.ranking import mean_average_precision

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def held_out():
    """A trainer on phantoms, and a function that gives the MAP of whole patients that it does not see."""
    settings = load_config("demo").encoder
    made = list(phantoms(480, seed=1))
    pixels = np.stack([resize(p.pixels, settings.input_size) for p in made])
    labels = np.array([CLASSES.index(p.label) for p in made])
    # Whole patients are held out, which is harder than the demo's own protocol.
    test = np.array([p.patient % 4 == 0 for p in made])
    none = LabelledImages([], labels[:0], [], pixels[:0])
    names = [str(n) for n in np.flatnonzero(~test)]
    fit = LabelledImages(names, labels[~test], names, pixels[~test])
    trainer = EncoderTrainer(new_encoder(settings, CLASSES, 1, None), settings, 1, fit, none)

    def held_out_map():
        vectors = embed_pixels(trainer.encoder, pixels, 64, "cpu")
        distances = np.square(vectors[test][:, None] - vectors[~test][None]).sum(axis=2)
        order = np.argsort(distances, axis=1)[:, :50]
        return mean_average_precision(labels[~test][order] == labels[test][:, None])

    return trainer, held_out_map


def test_an_untrained_encoder_stays_below_075_and_one_epoch_helps(held_out):
    trainer, held_out_map = held_out
    untrained = held_out_map()
    assert untrained < 0.75
    trainer.run_epoch(lambda done, total: None)
    assert held_out_map() > untrained


@pytest.mark.platform
def test_a_trained_encoder_passes_090(held_out):
    trainer, held_out_map = held_out
    while not trainer.finished and held_out_map() <= 0.90:
        trainer.run_epoch(lambda done, total: None)
    assert held_out_map() > 0.90
