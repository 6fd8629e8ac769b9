"""A trained encoder, ready to embed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import safetensors.torch

from mrcg.encoder.model import Encoder
from mrcg.encoder.spec import WEIGHTS, fingerprint, read_spec
from mrcg.encoder.train import embed_pixels
from mrcg.errors import IntegrityError
from mrcg.imaging.slices import Grey, resize
from mrcg.store import Artefact

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
