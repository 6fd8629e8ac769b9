"""How fast a frozen trunk runs on a CPU: torch, channels last, bfloat16, OpenVINO; and how far its features are off.

::

    python -m tests.bench.trunk --weights vgg16_imagenet_features.safetensors --out trunk.json

Images are phantoms. Each way runs in turns with the others, and the median counts: only ratios within one run compare.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from mrcg.config.loading import load_config
from mrcg.encoder.embedder import trunk_features
from mrcg.encoder.model import Encoder, to_input
from mrcg.encoder.trainer import new_encoder
from mrcg.errors import require
from mrcg.imaging.phantom import phantoms
from mrcg.imaging.slices import Grey, resize

BATCH, ROUNDS = 32, 3
Features = Callable[[Grey], np.ndarray]


def on_torch(weights: Path, *overrides: str) -> Features:
    """The trunk on torch, with settings of the encoder."""
    settings = load_config("paper", [*overrides]).encoder
    encoder = new_encoder(settings, ("a", "b"), 1, safetensors.torch.load_file(weights)).eval()
    return lambda pixels: trunk_features(encoder, pixels, BATCH, "cpu")


class _Trunk(torch.nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, grey_bss: torch.Tensor) -> torch.Tensor:
        return self.encoder.features(to_input(grey_bss))


def on_openvino(weights: Path, precision: str) -> Features:
    """The trunk on OpenVINO, computing in ``f32`` or ``bf16``."""
    openvino, settings = require("openvino"), load_config("paper", []).encoder
    encoder, side = new_encoder(settings, ("a", "b"), 1, safetensors.torch.load_file(weights)), settings.input_size
    model = openvino.convert_model(
        _Trunk(encoder).eval(),
        example_input=torch.zeros(1, side, side, dtype=torch.uint8),
        input=[([-1, side, side], np.uint8)],
    )
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": precision}
    compiled = openvino.Core().compile_model(model, "CPU", {**threads, "PERFORMANCE_HINT": "LATENCY"})
    return lambda pixels: np.concatenate(
        [np.array(compiled([pixels[start : start + BATCH]])[0]) for start in range(0, len(pixels), BATCH)]
    )


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="of VGG16, a .safetensors file")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    side = load_config("paper", []).encoder.input_size
    pixels = np.stack([resize(phantom.pixels, side) for phantom in phantoms(chosen.images, 1)])
    ways = {
        "torch": on_torch(chosen.weights),
        "torch, channels last": on_torch(chosen.weights, "encoder.channels_last=true"),
        "torch, bf16": on_torch(chosen.weights, "encoder.precision=bf16", "encoder.channels_last=true"),
        "OpenVINO, fp32": on_openvino(chosen.weights, "f32"),
        "OpenVINO, bf16": on_openvino(chosen.weights, "bf16"),
    }
    expected = ways["torch"](pixels)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    errors = {}
    for _ in range(ROUNDS):
        for name, features in ways.items():
            started = time.perf_counter()
            found = features(pixels)
            seconds[name].append(time.perf_counter() - started)
            errors[name] = float(np.abs(found - expected).max() / np.abs(expected).max())
    rows = [
        {"what": name, "images_per_second": len(pixels) / statistics.median(each), "largest_error": errors[name]}
        for name, each in seconds.items()
    ]
    result = {"threads": torch.get_num_threads(), "images": len(pixels), "rows": rows}
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        print(row, flush=True)


if __name__ == "__main__":
    main()
