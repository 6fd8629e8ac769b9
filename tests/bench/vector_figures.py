"""Figures of embeddings that a benchmark makes in its own way, on the scans and the split of a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mrcg.config.settings import AppearanceSettings
from mrcg.corpus.reader import Corpus
from mrcg.corpus.splits import Split
from mrcg.encoder.appearance import extended, fit_appearance, thumbnails
from mrcg.encoder.whitening import fit_whitening
from mrcg.evaluation.known_items import FORMS, forms_of
from mrcg.hashing import draw, seed_of
from mrcg.imaging.slices import Grey, resize
from mrcg.index.distances import exact_search
from mrcg.metrics.bootstrap import paired
from mrcg.metrics.ranking import average_precision, precision_at
from mrcg.storage.store import Store

Vectors = npt.NDArray[np.float32]
#: Makes (n, d) vectors of (n, s, s) grey levels.
Embed = Callable[[Grey], Vectors]
Values = npt.NDArray[np.float64]
#: AP of each query, and share of forms of each known item, by part.
Base = dict[str, Values]
KNOWN, DEPTH, RESAMPLES = 300, 50, 1000
#: AP below which a query finds next to nothing of its class.
HOPELESS = 0.05
#: Parts of the corpus that are embedded: the gallery, test queries, and gallery scans in changed forms.
PARTS = ("gallery", "test", "known")


@dataclass(frozen=True)
class Scans:
    """The scans of a report, resized, and what its figures need."""

    pixels: Mapping[str, Grey]
    rows: Mapping[str, npt.NDArray[np.int64]]
    known: npt.NDArray[np.int64]
    validation: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.object_]
    groups: npt.NDArray[np.object_]
    hashes: npt.NDArray[np.object_]

    @classmethod
    def of(cls, store: Store, report: str, side: int) -> Scans:
        """Read gallery, test and known items of a report, with ``side`` pixels a side."""
        inputs = store.manifest("reports", report).inputs
        corpus, split = (
            Corpus(store.artefact("corpus", inputs["corpus"])),
            Split(store.artefact("splits", inputs["splits"])),
        )
        ids = corpus.scans["image_id"].to_pylist()
        rows = {"gallery": np.flatnonzero(split.train), "test": np.flatnonzero(split.test)}
        known = np.array(sorted(rows["gallery"].tolist(), key=lambda row: draw(0, "bench", ids[row]))[:KNOWN])
        forms: Grey = np.empty((len(known), len(FORMS), side, side), dtype=np.uint8)
        for place, grey in corpus.images(known.tolist()):
            for form, changed in enumerate(forms_of(grey, seed_of(0, "bench", ids[known[place]]))):
                forms[place, form] = resize(changed, side)
        pixels = {name: corpus.pixels(numbers.tolist(), side) for name, numbers in rows.items()}
        return cls(
            pixels={**pixels, "known": forms.reshape(-1, side, side)},
            rows=rows,
            known=known,
            validation=split.validation[rows["gallery"]],
            labels=np.array(corpus.labels, dtype=object),
            groups=np.array(corpus.groups, dtype=object),
            hashes=np.array(corpus.scans["pixel_hash"].to_pylist(), dtype=object),
        )

    def embedded(self, embed: Embed) -> dict[str, Vectors]:
        """The vectors of all parts."""
        return {part: embed(self.pixels[part]) for part in PARTS}

    def mirrored(self, embed: Embed) -> dict[str, Vectors]:
        """The vectors of the mirror images of all parts."""
        return {part: embed(np.ascontiguousarray(self.pixels[part][:, :, ::-1])) for part in PARTS}

    def whitened(self, vectors: Mapping[str, Vectors], components: int) -> dict[str, Vectors]:
        """Vectors whitened on those of the training part that the encoder was fitted on."""
        whitening = fit_whitening(vectors["gallery"][~self.validation], components)
        return {part: whitening(each).astype(np.float32) for part, each in vectors.items()}

    def with_appearance(self, vectors: Mapping[str, Vectors], settings: AppearanceSettings) -> dict[str, Vectors]:
        """Vectors with an appearance part."""
        appearance = fit_appearance(thumbnails(self.pixels["gallery"]), vectors["gallery"], settings)
        return {part: extended(each, self.pixels[part], appearance) for part, each in vectors.items()}

    def figures(self, vectors: Mapping[str, Vectors], over: Mapping[str, Base]) -> dict[str, Any]:
        """MAP@50, P@10 and known items by exact distances, and gains.

        Validation scans are searched among the rest of the training part, test scans and changed gallery scans in it.

        Args:
            vectors: of all parts.
            over: what the gains are over, by their name; one that is empty is filled, and its gain is 0.
        """
        gallery, rows, held = vectors["gallery"], self.rows["gallery"], self.validation
        parts = {
            "validation": (gallery[held], gallery[~held], rows[held], rows[~held]),
            "test": (vectors["test"], gallery, self.rows["test"], rows),
        }
        found: dict[str, Any] = {"numbers": gallery.shape[1]}
        values, groups = dict[str, Values](), dict[str, list[str]]()
        for part, (queries, among, query_rows, among_rows) in parts.items():
            hits = among_rows[exact_search(queries, among, DEPTH)]
            relevant = self.labels[hits] == self.labels[query_rows][:, None]
            values[part], groups[part] = average_precision(relevant), self.groups[query_rows].tolist()
            found[f"{part}_map"] = float(values[part].mean())
            found[f"{part}_precision_at_10"] = float(precision_at(relevant, 10).mean())
            # Queries whose list is of another class: mislabelled, or of a kind that the gallery lacks.
            found[f"{part}_hopeless"] = float((values[part] < HOPELESS).mean())
        own = self.hashes[self.known].repeat(len(FORMS))
        first = self.hashes[rows][exact_search(vectors["known"], gallery, 1)[:, 0]] == own
        # The first form is the unchanged scan.
        values["changed"] = first.reshape(len(self.known), -1)[:, 1:].mean(axis=1)
        groups["changed"] = self.groups[self.known].tolist()
        found["changed_first"] = float(values["changed"].mean())
        for name, base in over.items():
            for part, each in values.items():
                gain = paired(base.setdefault(part, each), each, groups[part], RESAMPLES, seed_of(0, "bootstrap"))
                found[f"{part}_{name}"] = gain.model_dump()
        return found
