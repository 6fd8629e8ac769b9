"""The description of a reranker on disk. Does not import torch."""

from __future__ import annotations

import json

from pydantic import Field, ValidationError

from mrcg.config.settings import RerankerSettings
from mrcg.errors import WeightsError
from mrcg.frozen import Frozen
from mrcg.storage.store import Artefact

WEIGHTS, SPEC, HISTORY = "model.safetensors", "reranker.json", "history.json"


class RerankerSpec(Frozen):
    """Everything needed to rebuild a reranker except its weights.

    ``encoder`` is the fingerprint of the encoder whose embeddings it was trained on; it can only score those.
    """

    model: str
    features: tuple[str, ...] = Field(min_length=1)
    scale: bool
    embedding_dim: int
    hidden: int
    dropout: float
    drop_edge: float
    encoder: str = Field(min_length=1)

    @classmethod
    def of(cls, settings: RerankerSettings, embedding_dim: int, encoder_fingerprint: str) -> RerankerSpec:
        """Return the spec of the architecture that the settings describe, for one encoder's embeddings."""
        return cls(
            model=settings.model,
            features=settings.features,
            scale=settings.scale,
            embedding_dim=embedding_dim,
            hidden=settings.hidden,
            dropout=settings.dropout,
            drop_edge=settings.drop_edge,
            encoder=encoder_fingerprint,
        )


def read_spec(artefact: Artefact, encoder_fingerprint: str | None = None) -> RerankerSpec:
    """Return the spec of a version of kind ``rerankers``.

    Args:
        artefact: the version.
        encoder_fingerprint: fingerprint of the encoder whose embeddings are to be scored; None skips the check.

    Raises:
        IntegrityError: the file differs from the published one.
        WeightsError: the reranker was trained on another encoder's embeddings, or was written by an incompatible
            version of MRCG.
    """
    version = artefact.manifest.version
    try:
        spec = RerankerSpec.model_validate(json.loads(artefact.read_bytes(SPEC)))
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise WeightsError(
            f"reranker {version}: {key} in {SPEC} is not valid in this version of MRCG: train the reranker again"
        ) from error
    if encoder_fingerprint is not None and encoder_fingerprint != spec.encoder:
        raise WeightsError(
            f"reranker {version} was trained on encoder {spec.encoder}, not on {encoder_fingerprint}: "
            "train the reranker again on this encoder's embeddings"
        )
    return spec
