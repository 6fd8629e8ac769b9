"""The appearance part of an embedding: what a scan looks like, whatever its class (docs/method.md#appearance-part).

Training on classes folds each class into one place, so that the trained part alone cannot tell a scan from others of
its class. The appearance part is made of the principal components of a small thumbnail. It needs neither torch nor
initial weights, and takes a hundredth of the time of the network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrcg.arrays import Fp32Vectors
from mrcg.config.settings import AppearanceSettings
from mrcg.encoder.spec import read_spec
from mrcg.encoder.vector_statistics import principal_components, spread_of
from mrcg.errors import require
from mrcg.frozen import Frozen
from mrcg.imaging.slices import Grey
from mrcg.stages.counts import EmbeddingCounts
from mrcg.storage.manifest import Manifest
from mrcg.storage.store import Artefact

#: Files of embeddings with an appearance part, and of an index over them: queries are embedded alike.
FACTS, TENSORS = "appearance.json", "appearance.safetensors"
#: Side of a thumbnail in pixels. Coarser ones confuse scans, finer ones lose a scan that was cropped or turned.
SIDE = 12


class EmbeddingFacts(Frozen):
    """What a query has to know of the vectors that it is compared with.

    Attributes:
        fingerprint: of all that makes a vector. A query and a vector can be compared if it is the same.
        encoder: fingerprint of the encoder, which the reranker was trained with.
        dim: dimensions of a vector.
        trained_dim: dimensions of its trained part, which comes first; the others are its appearance part.
    """

    fingerprint: str
    encoder: str
    dim: int
    trained_dim: int


@dataclass(frozen=True)
class Appearance:
    """Maps scans to the appearance part of their embeddings.

    Attributes:
        mean_f: (f,) mean of the thumbnails that it was fitted on.
        components_fc: (f, c) their principal components, scaled.
    """

    mean_f: npt.NDArray[np.float32]
    components_fc: npt.NDArray[np.float32]

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return int(self.components_fc.shape[1])

    def embed(self, pixels_nss: Grey) -> Fp32Vectors:
        """(n, s, s) grey levels -> (n, c) appearance parts. A row depends only on its own image."""
        # In float64: a float32 matrix product rounds differently for one row than for many.
        centred_nf = (thumbnails(pixels_nss) - self.mean_f).astype(np.float64)
        return (centred_nf @ self.components_fc.astype(np.float64)).astype(np.float32)

    def to_bytes(self) -> bytes:
        """Return the content of ``appearance.safetensors``."""
        tensors = {"mean": self.mean_f, "components": np.ascontiguousarray(self.components_fc)}
        data: bytes = require("safetensors.numpy").save(tensors)
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Appearance:
        """Read what ``to_bytes`` returned."""
        tensors = require("safetensors.numpy").load(data)
        return cls(tensors["mean"], tensors["components"])


def extended(trained_nd: Fp32Vectors, pixels_nss: Grey, appearance: Appearance | None) -> Fp32Vectors:
    """Return embeddings: the trained parts, followed by the appearance parts of the same images, if there are any."""
    return trained_nd if appearance is None else np.concatenate([trained_nd, appearance.embed(pixels_nss)], axis=1)


def thumbnails(pixels_nss: Grey) -> Fp32Vectors:
    """(n, s, s) grey levels -> (n, SIDE²) thumbnails with mean 0 and standard deviation 1; zeros for a uniform image.

    Brightness and contrast differ between scanners and exports of one scan, so both are taken out.
    """
    area_as = _area_weights(pixels_nss.shape[1])
    small_naa = area_as @ pixels_nss.astype(np.float32) @ area_as.T
    flat_nf = small_naa.reshape(len(pixels_nss), -1).astype(np.float64)
    flat_nf -= flat_nf.mean(axis=1, keepdims=True)
    spread_n1 = flat_nf.std(axis=1, keepdims=True)
    # Below a hundredth of a grey level there is nothing but rounding.
    return np.where(spread_n1 > 0.01, flat_nf / np.maximum(spread_n1, 0.01), 0.0).astype(np.float32)


def _area_weights(side: int) -> npt.NDArray[np.float32]:
    """Return (SIDE, side) weights with which each output pixel is the mean of the area that it covers."""
    edges = np.linspace(0, side, SIDE + 1)
    pixel = np.arange(side)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    weights: npt.NDArray[np.float32] = (np.clip(overlap, 0, None) * SIDE / side).astype(np.float32)
    return weights


def fit_appearance(
    thumbnails_nf: Fp32Vectors, trained_md: npt.NDArray[np.floating], settings: AppearanceSettings
) -> Appearance:
    """Fit the appearance part on scans of the training part.

    Args:
        thumbnails_nf: (n, f) thumbnails.
        trained_md: (m, d) trained parts of some scans, for their spread: the root of the mean squared distance from
            their mean.
        settings: number of components, and the spread of the appearance part relative to that of the trained part.
    """
    mean, variances, axes = principal_components(thumbnails_nf, settings.components)
    # An encoder that gives every scan the same vector has no spread: the appearance part stands for itself.
    target = settings.weight * (spread_of(trained_md) or 1.0)
    spread = float(np.sqrt(variances.sum()))
    # Without spread, all thumbnails are equal: any scale gives zeros.
    scale = target / spread if spread > 0 else 1.0
    return Appearance(mean.astype(np.float32), (axes * scale).astype(np.float32))


def appearance_files(appearance: Appearance, encoder_fingerprint: str, trained_dim: int) -> Mapping[str, bytes]:
    """Return the files that describe vectors with an appearance part."""
    tensors = appearance.to_bytes()
    state = hashlib.blake2b(encoder_fingerprint.encode(), digest_size=8)
    state.update(tensors)
    facts = EmbeddingFacts(
        fingerprint=state.hexdigest(),
        encoder=encoder_fingerprint,
        dim=trained_dim + appearance.dim,
        trained_dim=trained_dim,
    )
    return {FACTS: json.dumps(facts.model_dump(), indent=1, sort_keys=True).encode(), TENSORS: tensors}


def facts_in(embeddings: Manifest) -> EmbeddingFacts:
    """Return the facts in the manifest of a version of kind ``embeddings``; earlier ones have the trained part only."""
    counts = embeddings.counts_as(EmbeddingCounts)
    return EmbeddingFacts(
        fingerprint=counts.fingerprint,
        encoder=counts.fingerprint if counts.encoder is None else counts.encoder,
        dim=counts.dim,
        trained_dim=counts.dim if counts.trained_dim is None else counts.trained_dim,
    )


def read_facts(vectors: Artefact, encoder: Artefact) -> EmbeddingFacts:
    """Return what a query has to know of some vectors.

    Args:
        vectors: a version of kind ``embeddings`` or ``indexes``.
        encoder: the version of kind ``encoders`` that they were made with.

    Raises:
        IntegrityError: a file differs from the published one.
    """
    names = [FACTS] if FACTS in vectors.names() else []
    return facts_of({name: vectors.read_bytes(name) for name in names}, encoder)


def facts_of(files: Mapping[str, bytes], encoder: Artefact) -> EmbeddingFacts:
    """Return the facts in the files that describe some vectors, or those of the encoder's own if there are none."""
    if FACTS in files:
        return EmbeddingFacts.model_validate_json(files[FACTS])
    spec, fingerprint = read_spec(encoder)
    return EmbeddingFacts(
        fingerprint=fingerprint, encoder=fingerprint, dim=spec.embedding_dim, trained_dim=spec.embedding_dim
    )


def read_appearance(vectors: Artefact) -> Appearance | None:
    """Return how the appearance part of some vectors is made, None if they have none.

    Args:
        vectors: a version of kind ``embeddings`` or ``indexes``.

    Raises:
        IntegrityError: a file differs from the published one.
    """
    return Appearance.from_bytes(vectors.read_bytes(TENSORS)) if TENSORS in vectors.names() else None
