"""What can be put beside the trained part of an embedding, so that a scan finds itself: figures and cost of each.

::

    python -m tests.bench.appearance --store store --encoder VERSION --weights mobilenet_v2_imagenet_features.safetensors

Every candidate is made of 128 principal components of some features, scaled to a spread relative to the trained part's.
Test queries and changed gallery scans are searched in the training part, by exact distances over both parts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch.nn import functional

from mrcg.config.settings import AppearanceSettings
from mrcg.corpus.reader import Corpus
from mrcg.corpus.splits import Split
from mrcg.encoder.appearance import fit_appearance, thumbnails
from mrcg.encoder.embedder import Embedder
from mrcg.encoder.model import Encoder, load_pretrained, to_input
from mrcg.evaluation.known_items import FORMS, forms_of
from mrcg.hashing import draw, seed_of
from mrcg.imaging.slices import Grey, resize
from mrcg.index.distances import exact_search
from mrcg.metrics.ranking import average_precision, precision_at
from mrcg.storage.store import Store

Features = npt.NDArray[np.float32]
Extract = Callable[[Grey], Features]
KNOWN, BATCH, ROUNDS, DEPTH = 300, 64, 5, 50
SMALL_SIDE, BLOCK, GRID = 96, 6, 4


@dataclass(frozen=True)
class Row:
    """One candidate: its weight, MAP and P@1 by distance, known items first by form, and time relative to the encoder."""

    what: str
    weight: float
    map: float
    precision_at_1: float
    unchanged: float
    changed: float
    cost: float


def candidates(encoder: Encoder, weights: Path | None) -> dict[str, Extract]:
    """The features that are tried, by name."""

    def batched(run: Callable[[torch.Tensor], torch.Tensor]) -> Extract:
        def extract(pixels_nss: Grey) -> Features:
            with torch.inference_mode():
                parts = [run(torch.from_numpy(pixels_nss[s : s + BATCH])) for s in range(0, len(pixels_nss), BATCH)]
            out: Features = torch.cat(parts).numpy()
            return out

        return extract

    def early(grey: torch.Tensor) -> torch.Tensor:
        x = to_input(grey)
        for module in list(encoder.trunk.children())[: BLOCK + 1]:
            x = module(x)
        return functional.adaptive_avg_pool2d(x, GRID).flatten(1)

    found: dict[str, Extract] = {"thumbnail": thumbnails, "early blocks of the trained trunk": batched(early)}
    if weights is not None:
        frozen = Encoder(encoder.spec)
        load_pretrained(frozen, safetensors.torch.load(weights.read_bytes()))
        frozen.eval()

        def small(grey: torch.Tensor) -> torch.Tensor:
            resized = functional.interpolate(
                grey[:, None].float(), size=(SMALL_SIDE,) * 2, mode="bilinear", antialias=True
            )
            return frozen.features(to_input(resized[:, 0] / 255))

        found["frozen trunk"] = batched(lambda grey: frozen.features(to_input(grey)))
        found[f"frozen trunk, {SMALL_SIDE} pixels"] = batched(small)
    return found


def seconds(run: Callable[[], Any]) -> float:
    """The best of several rounds."""
    best = float("inf")
    for turn in range(ROUNDS + 1):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start) if turn else best  # the first warms up
    return best


def measure(url: str, version: str, weights: Path | None) -> list[Row]:
    """All candidates beside one encoder."""
    store = Store(url)
    artefact = store.artefact("encoders", version)
    corpus = Corpus(store.artefact("corpus", artefact.manifest.inputs["corpus"]))
    split = Split(store.artefact("splits", artefact.manifest.inputs["splits"]))
    embedder = Embedder.open(artefact)
    side = embedder.input_size
    gallery, test = np.flatnonzero(split.train), np.flatnonzero(split.test)
    ids = corpus.scans["image_id"].to_pylist()
    known = np.array(sorted(gallery.tolist(), key=lambda row: draw(0, "bench", ids[row]))[:KNOWN])
    forms = np.empty((len(known), len(FORMS), side, side), dtype=np.uint8)
    for place, grey in corpus.images(known.tolist()):
        for form, changed in enumerate(forms_of(grey, seed_of(0, "bench", ids[known[place]]))):
            forms[place, form] = resize(changed, side)
    pixels = {"gallery": corpus.pixels(gallery.tolist(), side), "test": corpus.pixels(test.tolist(), side)}
    pixels["known"] = forms.reshape(-1, side, side)
    trained = {name: embedder.embed(each, BATCH) for name, each in pixels.items()}
    labels, hashes = np.array(corpus.labels, dtype=object), np.array(corpus.scans["pixel_hash"].to_pylist())
    own = hashes[known].repeat(len(FORMS))
    sample = pixels["gallery"][:BATCH]
    encoder_s = seconds(lambda: embedder.embed(sample, BATCH))

    def row(what: str, weight: float, whole: dict[str, Features], cost_s: float) -> Row:
        hits = exact_search(whole["test"], whole["gallery"], DEPTH)
        relevant = labels[gallery][hits] == labels[test][:, None]
        first = hashes[gallery][exact_search(whole["known"], whole["gallery"], 1)[:, 0]] == own
        shares = first.reshape(len(known), -1).mean(axis=0)
        return Row(
            what=what,
            weight=weight,
            map=float(average_precision(relevant).mean()),
            precision_at_1=float(precision_at(relevant, 1).mean()),
            unchanged=float(shares[0]),
            changed=float(shares[1:].mean()),
            cost=1 + cost_s / encoder_s,
        )

    rows = [row("the trained part alone", 0.0, trained, 0.0)]
    for what, extract in candidates(embedder.encoder, weights).items():
        features = {name: extract(each) for name, each in pixels.items()}
        cost_s = 0.0 if what.startswith("early") else seconds(lambda extract=extract: extract(sample))
        for weight in (0.5, 1.0):
            settings = AppearanceSettings(components=128, weight=weight)
            fitted = fit_appearance(features["gallery"], trained["gallery"], settings)
            whole = {
                name: np.concatenate([trained[name], (each - fitted.mean_f) @ fitted.components_fc], axis=1)
                for name, each in features.items()
            }
            rows.append(row(what, weight, whole, cost_s))
    return rows


def main() -> None:
    """Measure, and print or write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--encoder", required=True, help="version of the encoder")
    parser.add_argument("--weights", type=Path, help="weights of the frozen trunk")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    text = (
        json.dumps([asdict(row) for row in measure(options.store, options.encoder, options.weights)], indent=1) + "\n"
    )
    if options.out:
        options.out.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
