"""Resolve initial weights: locate or download them and compute their digest before any work starts."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import httpx

from mrcg.config.settings import EncoderSettings
from mrcg.errors import WeightsError, require
from mrcg.hashing import sha256, sha256_of
from mrcg.storage.cache import cache_folder


@dataclass(frozen=True)
class InitialWeights:
    """Local path of the initial weights, and their digest, which is part of the encoder's version.

    Attributes:
        path: file on this machine; None if training starts from scratch.
        digest: SHA-256 of the file, or ``none``.
    """

    path: Path | None
    digest: str

    def to_safetensors(self) -> bytes | None:
        """Return the weights as safetensors bytes, or None if training starts from scratch."""
        if self.path is None:
            return None
        if self.path.suffix != ".pth":
            return self.path.read_bytes()
        import safetensors.torch
        import torch

        # .pth files come from torchvision; weights_only rejects anything but tensors.
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        return safetensors.torch.save({k: v.contiguous() for k, v in state.items()})


def resolve_weights(settings: EncoderSettings) -> InitialWeights:
    """Locate or download the weights that ``encoder.weights`` names.

    Raises:
        WeightsError: the weights do not exist, are not a safetensors file, or cannot be downloaded.
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
            raise WeightsError(
                f"encoder.weights = {source}: no such file; use imagenet, none, a .safetensors file or a URL of one"
            )
        _check_safetensors(source, path)
    with path.open("rb") as file:
        return InitialWeights(path, sha256_of(file)[1])


def _check_safetensors(source: str, path: Path) -> None:
    """Check that a file starts like a safetensors file: 8 bytes of header length, then a JSON header.

    Raises:
        WeightsError: it does not.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            valid = length < path.stat().st_size and isinstance(json.loads(file.read(length)), dict)
        except ValueError:
            valid = False
    if not valid:
        raise WeightsError(
            f"encoder.weights = {source}: not a safetensors file; convert it, no other format is supported"
        )


def _fetch_imagenet(backbone: str) -> Path:
    models = require("torchvision.models")
    try:
        url = str(models.get_model_weights(backbone).DEFAULT.url)
    except ValueError as error:
        raise WeightsError(
            f"encoder.weights = imagenet: torchvision has no ImageNet weights for {backbone}; "
            "set encoder.weights to none or to a .safetensors file"
        ) from error
    return _fetch(url)


def _fetch(url: str) -> Path:
    name = Path(httpx.URL(url).path).name
    target = cache_folder() / "weights" / f"{sha256(url.encode())[:12]}-{name}"
    if target.is_file():
        return target
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with httpx.stream("GET", url, follow_redirects=True, timeout=30.0) as response, partial.open("wb") as file:
            response.raise_for_status()
            for chunk in response.iter_bytes():
                file.write(chunk)
        partial.replace(target)
    except (httpx.HTTPError, OSError) as error:
        partial.unlink(missing_ok=True)
        raise WeightsError(
            f"weights {url} cannot be fetched ({type(error).__name__}): "
            "set encoder.weights to none or to a .safetensors file"
        ) from error
    return target
