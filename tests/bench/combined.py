"""Vectors of two encoders side by side, such as MobileNetV2 and VGG16: MAP by distance and known items.

::

    python -m tests.bench.combined --store store --reports VERSION,VERSION --with ENCODER,ENCODER --out combined.json

The vectors of each report's encoder are searched alone, those of the other encoder alone, and both side by side, each
whitened and of the same spread, with half of the numbers from each; gains are over the report's own. Both encoders were trained on the same split (``tests.bench.vector_figures``).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from mrcg.encoder.embedder import Embedder
from mrcg.encoder.vector_statistics import spread_of
from mrcg.storage.store import Store
from tests.bench.vector_figures import Base, Scans, Vectors

BATCH, COMPONENTS = 64, 64


def embedded(store: Store, report: str, encoder: str) -> tuple[Scans, dict[str, Vectors], str]:
    """The scans of a report at the size that an encoder takes, their vectors, and the backbone."""
    embedder = Embedder.open(store.artefact("encoders", encoder))
    scans = Scans.of(store, report, embedder.input_size)
    return scans, scans.embedded(lambda grey: embedder.embed(grey, BATCH)), embedder.encoder.spec.backbone


def whitened(scans: Scans, vectors: dict[str, Vectors], components: int) -> dict[str, Vectors]:
    """Whitened vectors of spread 1."""
    found = scans.whitened(vectors, components)
    spread = spread_of(found["gallery"][~scans.validation])
    return {part: each / np.float32(spread) for part, each in found.items()}


def measure(store: Store, report: str, other: str) -> list[dict[str, Any]]:
    """Figures of each encoder alone, and of both."""
    inputs = store.manifest("reports", report).inputs
    seed = store.manifest("rerankers", inputs["rerankers"]).settings["seed"]
    own = store.manifest("embeddings", inputs["embeddings"]).inputs["encoders"]
    split = inputs["splits"]
    assert store.manifest("encoders", other).inputs["splits"] == split, "the encoders were trained on other scans"
    scans, first, name = embedded(store, report, own)
    _, second, other_name = embedded(store, report, other)
    halves = [whitened(scans, each, COMPONENTS // 2) for each in (first, second)]
    ways = [
        (name, whitened(scans, first, COMPONENTS)),
        (other_name, whitened(scans, second, COMPONENTS)),
        (f"{name} and {other_name}", {part: np.concatenate([half[part] for half in halves], axis=1) for part in first}),
    ]
    base: Base = {}
    return [{"what": what, "seed": seed, **scans.figures(vectors, {"gain": base})} for what, vectors in ways]


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--reports", required=True, help="versions, with commas between them")
    parser.add_argument("--with", dest="others", required=True, help="an encoder for each report")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    rows = list[dict[str, Any]]()
    for report, other in zip(chosen.reports.split(","), chosen.others.split(","), strict=True):
        rows += measure(Store(chosen.store), report, other)
        chosen.out.write_text(json.dumps(rows, indent=1) + "\n")
        for row in rows[-3:]:
            print(row["what"], {name: value for name, value in row.items() if isinstance(value, float)}, flush=True)


if __name__ == "__main__":
    main()
