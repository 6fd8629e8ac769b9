"""Embed scans with a trained encoder."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch
from torch import Tensor

from mrcg.arrays import Fp16Vectors, Fp32Vectors
from mrcg.encoder.appearance import Appearance, extended
from mrcg.encoder.augmentation import augment
from mrcg.encoder.model import Encoder, to_input
from mrcg.encoder.spec import WEIGHTS, fingerprint, read_spec
from mrcg.errors import IntegrityError
from mrcg.imaging.slices import Grey, resize
from mrcg.storage import schemas
from mrcg.storage.filesystem import HashingFile
from mrcg.storage.store import Artefact
from mrcg.training.block_cache import ArrayRows, FeatureRows

#: Images resized and embedded at a time; bounds the memory, however many images a file holds.
CHUNK = 256


class Embedder:
    """Embeds grey images. Not thread-safe: use one instance per thread.

    Args:
        encoder: makes the trained part of an embedding.
        encoder_fingerprint: of the encoder.
        device: torch device that it runs on.
        appearance: makes the appearance part; None leaves it out.
    """

    def __init__(
        self, encoder: Encoder, encoder_fingerprint: str, device: str = "cpu", appearance: Appearance | None = None
    ) -> None:
        self.encoder = encoder.to(device).eval()
        self.fingerprint = encoder_fingerprint
        self.device = device
        self.appearance = appearance

    @property
    def input_size(self) -> int:
        """Side of the square input images, in pixels."""
        return self.encoder.spec.input_size

    @classmethod
    def open(cls, artefact: Artefact, device: str = "cpu", appearance: Appearance | None = None) -> Embedder:
        """Load a version of kind ``encoders``; the hash of every file is checked as it is read.

        Args:
            artefact: the version.
            device: torch device that it runs on.
            appearance: makes the appearance part of an embedding; None leaves it out.

        Raises:
            IntegrityError: a file differs from the published one, or the weights do not match the fingerprint.
        """
        weights = artefact.read_bytes(WEIGHTS)
        spec, expected = read_spec(artefact)
        if fingerprint(spec, weights) != expected:
            raise IntegrityError(
                f"encoder {artefact.manifest.version}: its fingerprint does not match its weights; train it again"
            )
        encoder = Encoder(spec)
        encoder.load_state_dict(safetensors.torch.load(weights))
        return cls(encoder, expected, device, appearance)

    def embed_images(
        self, images: Iterable[tuple[str, Grey]], batch_size: int = 32, features: FeatureRows | None = None
    ) -> tuple[list[str], Fp16Vectors]:
        """Return ids and (n, d) float16 embeddings, as stored, of (id, grey levels) pairs of any image size.

        Args:
            images: the pairs.
            batch_size: images that the network takes at a time.
            features: stored trunk features of the images, if there are any. The trunk does not run then, and without an
                appearance part no image is read.
        """
        if features is not None and self.appearance is None:
            trained = embed_features(self.encoder, features.rows_nf, batch_size, self.device)
            return list(features.ids), trained.astype(np.float16)
        ids, parts = list[str](), list[Fp16Vectors]()
        for names, pixels in _chunks(images, self.input_size):
            if features is None:
                trained = embed_pixels(self.encoder, pixels, batch_size, self.device)
            else:
                assert names == list(features.ids[len(ids) : len(ids) + len(names)]), "features of other images"
                rows = features.rows_nf[len(ids) : len(ids) + len(names)]
                trained = embed_features(self.encoder, rows, batch_size, self.device)
            ids += names
            parts.append(extended(trained, pixels, self.appearance).astype(np.float16))
        return ids, np.concatenate(parts)

    def embed(self, pixels_nss: Grey, batch_size: int = 32) -> Fp32Vectors:
        """(n, s, s) grey levels -> (n, d) embeddings, not normalised: the trained part, then the appearance part."""
        assert pixels_nss.shape[1:] == (self.input_size, self.input_size), pixels_nss.shape
        return extended(embed_pixels(self.encoder, pixels_nss, batch_size, self.device), pixels_nss, self.appearance)


def _chunks(images: Iterable[tuple[str, Grey]], side: int) -> Iterator[tuple[list[str], Grey]]:
    """Yield ids and (n, side, side) grey levels of at most ``CHUNK`` images at a time."""
    remaining = iter(images)
    while chunk := list(itertools.islice(remaining, CHUNK)):
        yield [image_id for image_id, _ in chunk], np.stack([resize(grey, side) for _, grey in chunk])


def embed_pixels(encoder: Encoder, pixels_nss: ArrayRows, batch_size: int, device: str) -> Fp32Vectors:
    """(n, s, s) grey levels -> (n, d) float32 embeddings, without gradients."""
    return _in_batches(encoder, pixels_nss, batch_size, device, lambda grey: encoder(to_input(grey))[0])


def embed_features(encoder: Encoder, features_nf: ArrayRows, batch_size: int, device: str) -> Fp32Vectors:
    """(n, f) trunk features -> (n, d) float32 embeddings, without gradients."""
    return _in_batches(encoder, features_nf, batch_size, device, lambda features: encoder.branches(features)[0])


def trunk_features(
    encoder: Encoder, pixels_nss: ArrayRows, batch_size: int, device: str, augment_seed: int | None = None
) -> Fp32Vectors:
    """(n, s, s) grey levels -> (n, f) float32 trunk features; images are augmented if ``augment_seed`` is given."""
    batch_number = 0

    def run(grey: Tensor) -> Tensor:
        nonlocal batch_number
        batch_number += 1
        return encoder.features(to_input(grey if augment_seed is None else augment(grey, augment_seed + batch_number)))

    return _in_batches(encoder, pixels_nss, batch_size, device, run)


def write_features(
    sink: HashingFile, features_of: Callable[[Grey], Fp32Vectors], side: int, images: Iterable[tuple[str, Grey]]
) -> tuple[int, int]:
    """Run a trunk over the images of a pixel file and write its feature file, some hundred images at a time.

    Args:
        sink: of the feature file.
        features_of: the trunk: (n, side, side) grey levels -> (n, f) features.
        side: of its input images, in pixels.
        images: (id, grey levels) pairs of any image size; at least one.

    Returns:
        Number of images, and features of each.
    """
    writer, count, width = None, 0, 0
    for names, pixels in _chunks(images, side):
        features = features_of(pixels)
        width = features.shape[1]
        column = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), width)
        table = pa.table({"image_id": names, "features": column}, schemas.features(width))
        # Not compressed, so that the file can be memory-mapped.
        writer = writer or pa.ipc.new_file(sink, table.schema)
        writer.write_table(table)
        count += len(names)
    assert writer is not None, "a pixel file holds an image"
    writer.close()
    return count, width


def _in_batches(
    encoder: Encoder, rows: ArrayRows, batch_size: int, device: str, run: Callable[[Tensor], Tensor]
) -> Fp32Vectors:
    encoder.eval()
    out: list[Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            batch = torch.tensor(
                rows[start : start + batch_size], device=device
            )  # a copy: arrays from Ray are read-only
            out.append(run(batch).float().cpu())
    if not out:
        return np.empty((0, encoder.spec.embedding_dim), dtype=np.float32)
    vectors: Fp32Vectors = torch.cat(out).numpy()
    return vectors
