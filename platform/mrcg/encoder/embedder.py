"""A trained encoder, ready to embed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor

from mrcg.encoder.augmentation import augment
from mrcg.encoder.model import Encoder, to_input
from mrcg.encoder.spec import WEIGHTS, fingerprint, read_spec
from mrcg.errors import IntegrityError
from mrcg.imaging.slices import Grey, resize
from mrcg.storage.store import Artefact
from mrcg.training.block_cache import Rows

#: Images resized and embedded at a time: bounds the memory whatever the size of a file.
SLICE = 256

Stored = npt.NDArray[np.float16]


class Embedder:
    """Embeds resized grey images. One instance belongs to one thread at a time."""

    def __init__(self, encoder: Encoder, encoder_fingerprint: str, device: str = "cpu") -> None:
        self.encoder = encoder.to(device).eval()
        self.fingerprint = encoder_fingerprint
        self.device = device

    @property
    def input_size(self) -> int:
        """Side of the images it takes, pixels."""
        return self.encoder.spec.input_size

    @classmethod
    def open(cls, artefact: Artefact, device: str = "cpu") -> Embedder:
        """Load a version of kind ``encoders``; every file is hashed as it is read.

        Raises:
            IntegrityError: a file is not the one that was published.
        """
        weights = artefact.read_bytes(WEIGHTS)
        spec, stated = read_spec(artefact)
        if fingerprint(spec, weights) != stated:
            raise IntegrityError(f"encoder {artefact.manifest.version}: fingerprint and weights differ, train it again")
        encoder = Encoder(spec)
        encoder.load_state_dict(safetensors.torch.load(weights))
        return cls(encoder, stated, device)

    def embed_images(self, images: Iterable[tuple[str, Grey]], batch_size: int = 32) -> tuple[list[str], Stored]:
        """Ids and (n, d) embeddings, as they are stored, of images of any size."""
        return embed_images(self.encoder, images, batch_size, self.device)

    def embed(self, pixels_nss: Grey, batch_size: int = 32) -> npt.NDArray[np.float32]:
        """(n, s, s) grey levels -> (n, d) embeddings, as they are: not normalised."""
        assert pixels_nss.shape[1:] == (self.input_size, self.input_size), pixels_nss.shape
        return embed_pixels(self.encoder, pixels_nss, batch_size, self.device)


def embed_images(
    encoder: Encoder, images: Iterable[tuple[str, Grey]], batch_size: int, device: str
) -> tuple[list[str], Stored]:
    """Ids and (n, d) embeddings, as they are stored, of (id, grey levels) of any size."""
    waiting, ids, parts = iter(images), list[str](), list[Stored]()
    while some := list(itertools.islice(waiting, SLICE)):
        pixels = np.stack([resize(grey, encoder.spec.input_size) for _, grey in some])
        ids += [ident for ident, _ in some]
        parts.append(embed_pixels(encoder, pixels, batch_size, device).astype(np.float16))
    return ids, np.concatenate(parts)


Vectors = npt.NDArray[np.float32]


def embed_pixels(encoder: Encoder, pixels_nss: Rows, batch_size: int, device: str) -> Vectors:
    """(n, s, s) grey levels -> (n, d) float32 embeddings, without gradients."""
    return _in_batches(encoder, pixels_nss, batch_size, device, lambda grey: encoder(to_input(grey))[0])


def embed_features(encoder: Encoder, features_nf: Rows, batch_size: int, device: str) -> Vectors:
    """(n, f) features of the trunk -> (n, d) float32 embeddings, without gradients."""
    return _in_batches(encoder, features_nf, batch_size, device, lambda features: encoder.branches(features)[0])


def trunk_features(
    encoder: Encoder, pixels_nss: Rows, batch_size: int, device: str, augment_seed: int | None = None
) -> Vectors:
    """(n, s, s) grey levels -> (n, f) what the branches see, of an augmented view where there is a seed."""
    done = 0

    def run(grey: Tensor) -> Tensor:
        nonlocal done
        done += 1
        return encoder.features(to_input(grey if augment_seed is None else augment(grey, augment_seed + done)))

    return _in_batches(encoder, pixels_nss, batch_size, device, run)


def _in_batches(encoder: Encoder, rows: Rows, batch_size: int, device: str, run: Callable[[Tensor], Tensor]) -> Vectors:
    encoder.eval()
    out: list[Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            batch = torch.tensor(rows[start : start + batch_size], device=device)  # a copy: Ray's arrays are read-only
            out.append(run(batch).float().cpu())
    if not out:
        return np.empty((0, encoder.spec.embedding_dim), dtype=np.float32)
    vectors: Vectors = torch.cat(out).numpy()
    return vectors
