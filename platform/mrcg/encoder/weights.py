"""Initial weights: found, fetched and digested before any work starts."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import httpx

from mrcg.config import EncoderSettings
from mrcg.errors import WeightsError, require


@dataclass(frozen=True)
class InitialWeights:
    """Where initial weights lie on this machine, and the digest that goes into the encoder's version."""

    path: Path | None
    digest: str

    def to_safetensors(self) -> bytes | None:
        """The weights as safetensors bytes, None where training starts from scratch."""
        if self.path is None:
            return None
        if self.path.suffix == ".safetensors":
            return self.path.read_bytes()
        import safetensors.torch
        import torch

        # torchvision's own files: weights_only refuses everything but tensors.
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        return safetensors.torch.save({k: v.contiguous() for k, v in state.items()})


def resolve_weights(settings: EncoderSettings) -> InitialWeights:
    """Find or fetch what ``encoder.weights`` names.

    Raises:
        WeightsError: no such file, or it cannot be fetched; the message names a way out.
    """
    source = settings.weights
    if source == "none":
        return InitialWeights(None, "none")
    if source == "imagenet":
        path = _fetch_imagenet(settings.backbone)
    elif source.startswith(("http://", "https://")):
        path = _fetch(source)
    else:
        path = Path(source).expanduser()
        if path.suffix != ".safetensors":
            raise WeightsError(
                f"encoder.weights = {source}: expected imagenet, none, a .safetensors file or a URL of one"
            )
        if not path.is_file():
            raise WeightsError(f"encoder.weights = {source}: no such file")
    with path.open("rb") as file:
        return InitialWeights(path, hashlib.file_digest(file, "sha256").hexdigest())


def cache_folder() -> Path:
    """Where fetched files are kept: ``$MRCG_CACHE`` or ``~/.cache/mrcg``."""
    return Path(os.environ.get("MRCG_CACHE", "~/.cache/mrcg")).expanduser()


def _fetch_imagenet(backbone: str) -> Path:
    models = require("torchvision.models", "embed")
    try:
        url = str(models.get_model_weights(backbone).DEFAULT.url)
    except ValueError as error:
        raise WeightsError(f"encoder.weights = imagenet: torchvision has none for {backbone}") from error
    return _fetch(url)


def _fetch(url: str) -> Path:
    name = url.rsplit("/", 1)[-1]
    target = cache_folder() / "weights" / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    if target.is_file():
        return target
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with httpx.stream("GET", url, follow_redirects=True, timeout=30.0) as answer, partial.open("wb") as file:
            answer.raise_for_status()
            for chunk in answer.iter_bytes():
                file.write(chunk)
        partial.replace(target)
    except (httpx.HTTPError, OSError) as error:
        partial.unlink(missing_ok=True)
        raise WeightsError(
            f"weights {url} cannot be fetched ({type(error).__name__}): "
            "set encoder.weights to none or to a .safetensors file"
        ) from error
    return target
