"""Embed scans on CPUs with OpenVINO, in fp32 or in int8 calibrated on a sample of scans, and run a frozen trunk."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mrcg.arrays import Fp32Vectors
from mrcg.encoder.appearance import extended
from mrcg.encoder.embedder import Embedder
from mrcg.encoder.model import Encoder, to_input
from mrcg.errors import require
from mrcg.imaging.slices import Grey

#: Scans that calibrate int8; NNCF's default.
CALIBRATION_SCANS = 300


class _GreyToFeatures(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, grey_bss: Tensor) -> Tensor:
        return self.encoder.features(to_input(grey_bss))


class _GreyToEmbedding(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, grey_bss: Tensor) -> Tensor:
        embeddings: Tensor = self.encoder(to_input(grey_bss))[0]
        return embeddings


class OpenVinoEmbedder:
    """Embeds grey images like ``Embedder``, with the same weights. Not thread-safe: use one instance per thread.

    Args:
        embedder: the embedder whose weights are converted.
        threads: CPU threads of one inference.
        sample_nss: (n, s, s) grey levels that calibrate int8; None keeps fp32.
    """

    def __init__(self, embedder: Embedder, threads: int, sample_nss: Grey | None = None) -> None:
        self.fingerprint, self.input_size = embedder.fingerprint, embedder.input_size
        self._dim, self._appearance = embedder.encoder.spec.embedding_dim, embedder.appearance
        model = _converted(_GreyToEmbedding(embedder.encoder), self.input_size)
        if sample_nss is not None:
            model = _quantised(model, sample_nss)
        self._compiled = _compiled(model, threads)

    def embed(self, pixels_nss: Grey, batch_size: int = 32) -> Fp32Vectors:
        """(n, s, s) grey levels -> (n, d) embeddings, not normalised: the trained part, then the appearance part."""
        assert pixels_nss.shape[1:] == (self.input_size, self.input_size), pixels_nss.shape
        return extended(_in_batches(self._compiled, pixels_nss, batch_size, self._dim), pixels_nss, self._appearance)


class OpenVinoTrunk:
    """Runs an encoder's trunk on grey images like ``trunk_features``. Not thread-safe.

    Args:
        encoder: whose trunk is converted; its branches are not needed.
        threads: CPU threads of one inference.
    """

    def __init__(self, encoder: Encoder, threads: int) -> None:
        self._side = encoder.spec.input_size
        self._compiled = _compiled(_converted(_GreyToFeatures(encoder), self._side), threads)
        self._width = int(self._compiled.output(0).get_partial_shape()[1].get_length())

    def features(self, pixels_nss: Grey, batch_size: int = 32) -> Fp32Vectors:
        """(n, s, s) grey levels -> (n, f) trunk features."""
        assert pixels_nss.shape[1:] == (self._side, self._side), pixels_nss.shape
        return _in_batches(self._compiled, pixels_nss, batch_size, self._width)


def _converted(module: nn.Module, side: int) -> Any:
    openvino = require("openvino")
    with warnings.catch_warnings():
        # It traces with torch.jit, which torch calls deprecated, and our checks of shapes are constants in a trace.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        return openvino.convert_model(
            module.eval(),
            example_input=torch.zeros(1, side, side, dtype=torch.uint8),
            input=[([-1, side, side], np.uint8)],
        )


def _compiled(model: Any, threads: int) -> Any:
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    return require("openvino").Core().compile_model(model, "CPU", settings)


def _in_batches(compiled: Any, pixels_nss: Grey, batch_size: int, width: int) -> Fp32Vectors:
    out = np.empty((len(pixels_nss), width), dtype=np.float32)
    for start in range(0, len(pixels_nss), batch_size):
        batch = np.ascontiguousarray(pixels_nss[start : start + batch_size])
        out[start : start + batch_size] = compiled([batch])[0]
    return out


def _quantised(model: Any, sample_nss: Grey) -> Any:
    nncf = require("nncf")
    return nncf.quantize(
        model,
        nncf.Dataset([grey[None] for grey in sample_nss]),
        subset_size=len(sample_nss),
        # Correct biases layer by layer, on outputs of the layers already quantised: slower, but only once per release.
        fast_bias_correction=False,
        # Keep depthwise convolutions and residual sums in fp32: they cost little, and in int8 neighbours would be lost.
        ignored_scope=nncf.IgnoredScope(types=["GroupConvolution", "Add"], validate=False),
    )
