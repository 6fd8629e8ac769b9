"""A trained encoder as OpenVINO computes it on CPUs: in fp32, or in int8 where a sample of scans says how to round."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mrcg.encoder.embedder import Embedder
from mrcg.encoder.model import Encoder, to_input
from mrcg.errors import require
from mrcg.imaging.slices import Grey

#: Scans that calibrate int8. NNCF's own default.
SAMPLE = 300


class _Similarity(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, grey_bss: Tensor) -> Tensor:
        embeddings: Tensor = self.encoder(to_input(grey_bss))[0]
        return embeddings


class OpenVinoEmbedder:
    """Embeds as ``Embedder`` does, from the same weights. One instance belongs to one thread at a time.

    Args:
        embedder: whose weights are taken.
        threads: of one inference.
        sample_nss: (n, s, s) grey levels that calibrate int8; None stays in fp32.
    """

    def __init__(self, embedder: Embedder, threads: int, sample_nss: Grey | None = None) -> None:
        self.fingerprint, self.input_size = embedder.fingerprint, embedder.input_size
        self.dim = embedder.encoder.spec.embedding_dim
        openvino, side = require("openvino"), self.input_size
        model = openvino.convert_model(
            _Similarity(embedder.encoder).eval(),
            example_input=torch.zeros(1, side, side, dtype=torch.uint8),
            input=[([-1, side, side], np.uint8)],
        )
        if sample_nss is not None:
            model = _quantised(model, sample_nss)
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        self._compiled = openvino.Core().compile_model(model, "CPU", settings)

    def embed(self, pixels_nss: Grey, batch_size: int = 32) -> npt.NDArray[np.float32]:
        """(n, s, s) grey levels -> (n, d) embeddings, as they are: not normalised."""
        assert pixels_nss.shape[1:] == (self.input_size, self.input_size), pixels_nss.shape
        out = np.empty((len(pixels_nss), self.dim), dtype=np.float32)
        for start in range(0, len(pixels_nss), batch_size):
            some = np.ascontiguousarray(pixels_nss[start : start + batch_size])
            out[start : start + batch_size] = self._compiled([some])[0]
        return out


def _quantised(model: Any, sample_nss: Grey) -> Any:
    nncf = require("nncf")
    return nncf.quantize(
        model,
        nncf.Dataset([grey[None] for grey in sample_nss]),
        subset_size=len(sample_nss),
        # Layer by layer, each on what the rounded ones before it give: it takes longer, once a release.
        fast_bias_correction=False,
        # Depthwise convolutions and residual sums cost little and round badly: neighbours would be lost.
        ignored_scope=nncf.IgnoredScope(types=["GroupConvolution", "Add"], validate=False),
    )
