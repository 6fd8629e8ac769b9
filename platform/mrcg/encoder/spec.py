"""The description of an encoder on disk. Does not import torch, because the gateway reads it."""

from __future__ import annotations

import hashlib
import json

from pydantic import ValidationError

from mrcg.config.settings import EncoderSettings
from mrcg.errors import WeightsError
from mrcg.frozen import Frozen
from mrcg.storage.store import Artefact

WEIGHTS, SPEC, HISTORY = "model.safetensors", "encoder.json", "history.json"


class EncoderSpec(Frozen):
    """Everything needed to rebuild an encoder except its weights.

    ``mirror`` is whether an embedding is that of an image and its mirror image; earlier versions had none such.
    """

    backbone: str
    head: str
    embedding_dim: int
    input_size: int
    dropout: float
    precision: str
    channels_last: bool
    classes: tuple[str, ...]
    mirror: bool = False

    @classmethod
    def of(cls, settings: EncoderSettings, classes: tuple[str, ...]) -> EncoderSpec:
        """Return the spec of the architecture that the settings describe."""
        return cls(
            backbone=settings.backbone,
            head=settings.head,
            embedding_dim=settings.embedding_dim,
            input_size=settings.input_size,
            dropout=settings.dropout,
            precision=settings.precision,
            channels_last=settings.channels_last,
            classes=classes,
            mirror=settings.mirror,
        )


def fingerprint(spec: EncoderSpec, weights: bytes) -> str:
    """Return the fingerprint of an encoder: a hash of its architecture and weights."""
    # What was added later does not change the fingerprints of earlier encoders, which have its default.
    state = hashlib.blake2b(spec.model_dump_json(exclude_defaults=True).encode(), digest_size=8)
    state.update(weights)
    return state.hexdigest()


def spec_bytes(spec: EncoderSpec, encoder_fingerprint: str) -> bytes:
    """Return the content of ``encoder.json``: the architecture and the encoder's fingerprint."""
    # Without what is at its default, so that earlier versions of MRCG read encoders that need nothing new.
    facts = {"fingerprint": encoder_fingerprint, "spec": spec.model_dump(exclude_defaults=True)}
    return json.dumps(facts, indent=1, sort_keys=True).encode()


def read_spec(artefact: Artefact) -> tuple[EncoderSpec, str]:
    """Return the architecture and the fingerprint of a version of kind ``encoders``.

    Raises:
        IntegrityError: the file differs from the published one.
        WeightsError: it was written by an incompatible version of MRCG.
    """
    facts = json.loads(artefact.read_bytes(SPEC))
    try:
        return EncoderSpec.model_validate(facts["spec"]), str(facts["fingerprint"])
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise WeightsError(
            f"encoder {artefact.manifest.version}: {key} in {SPEC} is not valid in this version of MRCG: "
            "train the encoder again, or use the version of MRCG that trained it"
        ) from error
