"""Initial weights: found, fetched and digested before any work starts."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import httpx

from mrcg.config.settings import EncoderSettings
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
        if self.path.suffix != ".pth":
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
        _check_safetensors(source, path)
    else:
        path = Path(source).expanduser()
        if not path.is_file():
            raise WeightsError(f"encoder.weights = {source}: no such file; imagenet, none, a file or a URL are allowed")
        _check_safetensors(source, path)
    with path.open("rb") as file:
        return InitialWeights(path, hashlib.file_digest(file, "sha256").hexdigest())


def _check_safetensors(source: str, path: Path) -> None:
    """Whether a file begins as safetensors do: 8 bytes of length, then a header in JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            whole = length < path.stat().st_size and isinstance(json.loads(file.read(length)), dict)
        except ValueError:
            whole = False
    if not whole:
        raise WeightsError(f"encoder.weights = {source}: not a safetensors file (other formats are not read)")


def cache_folder() -> Path:
    """Where fetched files are kept: ``$MRCG_CACHE`` or ``~/.cache/mrcg``."""
    return Path(os.environ.get("MRCG_CACHE", "~/.cache/mrcg")).expanduser()


def _fetch_imagenet(backbone: str) -> Path:
    models = require("torchvision.models")
    try:
        url = str(models.get_model_weights(backbone).DEFAULT.url)
    except ValueError as error:
        raise WeightsError(f"encoder.weights = imagenet: torchvision has none for {backbone}") from error
    return _fetch(url)


def _fetch(url: str) -> Path:
    name = Path(httpx.URL(url).path).name
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
