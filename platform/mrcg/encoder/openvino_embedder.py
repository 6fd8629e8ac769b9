"""Embed scans on CPUs with OpenVINO, in fp32 or in int8 calibrated on a sample of scans."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mrcg.encoder.appearance import extended
from mrcg.encoder.embedder import Embedder
from mrcg.encoder.model import Encoder, to_input
from mrcg.errors import require
from mrcg.imaging.slices import Grey

#: Scans that calibrate int8; NNCF's default.
CALIBRATION_SCANS = 300


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
        openvino, side = require("openvino"), self.input_size
        model = openvino.convert_model(
            _GreyToEmbedding(embedder.encoder).eval(),
            example_input=torch.zeros(1, side, side, dtype=torch.uint8),
            input=[([-1, side, side], np.uint8)],
        )
        if sample_nss is not None:
            model = _quantised(model, sample_nss)
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        self._compiled = openvino.Core().compile_model(model, "CPU", settings)

    def embed(self, pixels_nss: Grey, batch_size: int = 32) -> npt.NDArray[np.float32]:
        """(n, s, s) grey levels -> (n, d) embeddings, not normalised: the trained part, then the appearance part."""
        assert pixels_nss.shape[1:] == (self.input_size, self.input_size), pixels_nss.shape
        out = np.empty((len(pixels_nss), self._dim), dtype=np.float32)
        for start in range(0, len(pixels_nss), batch_size):
            batch = np.ascontiguousarray(pixels_nss[start : start + batch_size])
            out[start : start + batch_size] = self._compiled([batch])[0]
        return extended(out, pixels_nss, self._appearance)


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
