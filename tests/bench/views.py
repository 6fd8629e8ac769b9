"""Cheap changes of a trained vector: mirrored views, whitening. MAP by distance and known items with each.

::

    python -m tests.bench.views --store store --reports VERSION,VERSION --out views.json

The trained part alone is searched, by exact distances: validation scans among the rest of the training part, and test
scans and changed gallery scans among the training part.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mrcg.corpus.reader import Corpus
from mrcg.corpus.splits import Split
from mrcg.encoder.embedder import Embedder
from mrcg.encoder.whitening import fit_whitening
from mrcg.evaluation.known_items import FORMS, forms_of
from mrcg.hashing import draw, seed_of
from mrcg.imaging.slices import Grey, resize
from mrcg.index.distances import exact_search
from mrcg.metrics.bootstrap import paired
from mrcg.metrics.ranking import average_precision, precision_at
from mrcg.storage.store import Store

Vectors = npt.NDArray[np.float32]
KNOWN, BATCH, DEPTH, RESAMPLES = 300, 64, 50, 1000
#: Numbers that whitening keeps.
COMPONENTS = 64


def ways(plain: Mapping[str, Vectors], mirrored: Mapping[str, Vectors]) -> dict[str, dict[str, Vectors]]:
    """The vectors of gallery, validation, test and known items, changed in each way."""
    both = {name: (plain[name] + mirrored[name]) / 2 for name in plain}
    whiten, whiten_both = (fit_whitening(each["gallery"], COMPONENTS) for each in (plain, both))
    return {
        "as trained": dict(plain),
        "mean with the mirror image": both,
        "mean with the mirror image, gallery alone": {**plain, "gallery": both["gallery"]},
        "whitened": {name: whiten(each).astype(np.float32) for name, each in plain.items()},
        "mean with the mirror image, whitened": {
            name: whiten_both(each).astype(np.float32) for name, each in both.items()
        },
    }


def measure(store: Store, report: str) -> list[dict[str, Any]]:
    """All ways with the encoder of a report."""
    inputs = store.manifest("reports", report).inputs
    corpus, split = (
        Corpus(store.artefact("corpus", inputs["corpus"])),
        Split(store.artefact("splits", inputs["splits"])),
    )
    encoder = store.manifest("embeddings", inputs["embeddings"]).inputs["encoders"]
    embedder = Embedder.open(store.artefact("encoders", encoder))
    side, ids = embedder.input_size, corpus.scans["image_id"].to_pylist()
    rows = {"gallery": np.flatnonzero(split.train), "test": np.flatnonzero(split.test)}
    known = np.array(sorted(rows["gallery"].tolist(), key=lambda row: draw(0, "bench", ids[row]))[:KNOWN])
    forms: Grey = np.empty((len(known), len(FORMS), side, side), dtype=np.uint8)
    for place, grey in corpus.images(known.tolist()):
        for form, changed in enumerate(forms_of(grey, seed_of(0, "bench", ids[known[place]]))):
            forms[place, form] = resize(changed, side)
    pixels = {name: corpus.pixels(numbers.tolist(), side) for name, numbers in rows.items()}
    pixels["known"] = forms.reshape(-1, side, side)
    plain = {name: embedder.embed(each, BATCH) for name, each in pixels.items()}
    mirrored = {name: embedder.embed(np.ascontiguousarray(each[:, :, ::-1]), BATCH) for name, each in pixels.items()}

    labels, groups = np.array(corpus.labels, dtype=object), np.array(corpus.groups)
    hashes = np.array(corpus.scans["pixel_hash"].to_pylist())
    validation = split.validation[rows["gallery"]]
    found, base = [], {}
    for what, vectors in ways(plain, mirrored).items():
        gallery = vectors["gallery"]
        parts = {
            "validation": (gallery[validation], gallery[~validation], rows["gallery"][validation], rows["gallery"][~validation]),
            "test": (vectors["test"], gallery, rows["test"], rows["gallery"]),
        }  # fmt: skip
        row: dict[str, Any] = {"what": what, "report": report}
        for part, (queries, among, query_rows, among_rows) in parts.items():
            relevant = labels[among_rows][exact_search(queries, among, DEPTH)] == labels[query_rows][:, None]
            ap = average_precision(relevant)
            base.setdefault(part, ap)
            gain = paired(base[part], ap, groups[query_rows].tolist(), RESAMPLES, seed_of(0, "bootstrap"))
            row |= {
                f"{part}_map": float(ap.mean()),
                f"{part}_precision_at_10": float(precision_at(relevant, 10).mean()),
            }
            row[f"{part}_gain"] = gain.model_dump()
        first = hashes[rows["gallery"]][exact_search(vectors["known"], gallery, 1)[:, 0]] == hashes[known].repeat(
            len(FORMS)
        )
        row["changed_first"] = float(first.reshape(len(known), -1)[:, 1:].mean())
        found.append(row)
    return found


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--reports", required=True, help="versions, with commas between them")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    rows = []
    for report in chosen.reports.split(","):
        rows += measure(Store(chosen.store), report)
        chosen.out.write_text(json.dumps(rows, indent=1) + "\n")
        for row in rows[-5:]:
            print(row["what"], {name: value for name, value in row.items() if isinstance(value, float)}, flush=True)


if __name__ == "__main__":
    main()
