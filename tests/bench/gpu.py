"""Images per second of training and embedding on a card, and what share of its peak that is.

    python -m tests.bench.gpu [--out FILE] [--device cuda]

The peak is measured in the same run: a large matrix product in bfloat16. The share is the model's floating-point
operations (counted by torch, forward and backward) over the seconds they took, over that peak. Knows neither Ray nor FAISS.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from mrcg.config.loading import load_config
from mrcg.config.settings import Config
from mrcg.encoder.model import Encoder, to_input
from mrcg.encoder.trainer import EncoderTrainer, LabelledImages, new_encoder

CLASSES = ("a", "b", "c", "d")
SECONDS = 5.0
#: Recipes as they are shipped, in bfloat16 and channels last; the trunk of the paper's is run and not cached.
SETTINGS = ("encoder.weights=none", "encoder.precision=bf16", "encoder.channels_last=true", "encoder.cache_trunk=false")


def rate(run: Callable[[], object], device: str) -> float:
    """Calls per second, after three that warm up."""
    for _ in range(3):
        run()
    _wait(device)
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        run()
        calls += 1
        _wait(device)
    return calls / (time.perf_counter() - start)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def flops(run: Callable[[], object]) -> float:
    """Floating-point operations of one call, backward included."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def peak(device: str) -> float:
    """Operations per second of a large matrix product in bfloat16."""
    side = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return rate(lambda: a @ b, device) * 2 * side**3


def measure(recipe: str, device: str, batch: int) -> list[dict[str, object]]:
    """A line for training and one for embedding."""
    config = load_config(recipe, [*SETTINGS, f"encoder.batch_size={batch}", "encoder.mining=batch_all"])
    settings, limit = config.encoder, peak(device)
    encoder = new_encoder(settings, CLASSES, config.seed, None).to(device)
    trainer, pixels = _trainer(config, encoder, device, batch)

    def train() -> None:
        trainer.model.train()
        trainer._step(np.arange(batch), 0, 0, settings.learning_rate)

    def embed() -> None:
        encoder.eval()
        with torch.inference_mode():
            encoder(to_input(pixels))

    lines: list[dict[str, object]] = []
    for what, run in (("training", train), ("embedding", embed)):
        calls = rate(run, device)
        share = calls * flops(run) / limit
        lines.append({"recipe": recipe, "what": what, "batch": batch, "images_s": calls * batch, "share": share})
    return lines


def _trainer(config: Config, encoder: Encoder, device: str, batch: int) -> tuple[EncoderTrainer, torch.Tensor]:
    from mrcg.training.state import Worker

    rng, side = np.random.default_rng(1), config.encoder.input_size
    pixels, names = rng.integers(0, 256, (batch, side, side), dtype=np.uint8), [str(n) for n in range(batch)]
    fit = LabelledImages(names, rng.integers(0, len(CLASSES), batch), names, pixels)
    none = LabelledImages([], fit.labels[:0], [], pixels[:0])
    trainer = EncoderTrainer(encoder, config.encoder, config.seed, fit, none, Worker(device=device))
    return trainer, torch.from_numpy(pixels).to(device)


def main() -> None:
    """Measure and print; with ``--out`` also write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    card = torch.cuda.get_device_name() if chosen.device == "cuda" else "CPU"
    lines = [line for recipe in ("mobilenet", "paper") for line in measure(recipe, chosen.device, chosen.batch)]
    for line in lines:
        print(f"{card}, {line['recipe']}, {line['what']}: {line['images_s']:.0f} images/s, "
              f"{100 * float(str(line['share'])):.1f} % of the measured peak")  # fmt: skip
    if chosen.out:
        chosen.out.write_text(json.dumps({"card": card, "lines": lines}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
