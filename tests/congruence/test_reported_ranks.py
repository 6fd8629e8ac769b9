"""The report's known items and searches of the pipeline, by the same pixels, agree on every rank."""

import io

import numpy as np
import pytest
from PIL import Image

from mrcg.api.requests import SearchParams
from mrcg.config.service import ServeSettings
from mrcg.corpus.reader import Corpus
from mrcg.corpus.splits import Split
from mrcg.evaluation.known_items import FORMS, forms_of
from mrcg.hashing import seed_of
from mrcg.metrics.report import KNOWN
from mrcg.releases.release import read_release
from mrcg.retrieval.local import LocalPipeline
from mrcg.storage import schemas

SCANS = 4


class OnlyTheTrainingPart:
    """The report searches in the training part alone."""

    def __init__(self, mask):
        self.mask = mask

    def allowed(self, principal):
        return self.mask


def test_a_scan_is_found_at_the_rank_that_the_report_states(library_store):
    release = read_release(library_store)
    report = library_store.artefact("reports", release.report)
    corpus = Corpus(library_store.artefact("corpus", release.corpus))
    split = Split(library_store.artefact("splits", report.manifest.inputs["splits"]))
    pipeline = LocalPipeline(library_store, release, ServeSettings(), OnlyTheTrainingPart(split.train))
    rows = schemas.from_parquet(report.read_bytes(KNOWN)).to_pylist()
    stated = {(row["image_id"], row["form"]): row for row in rows}
    hashes = dict(zip(*(corpus.scans[name].to_pylist() for name in ("image_id", "pixel_hash")), strict=True))
    compared = 0
    for ident in list(dict.fromkeys(row["image_id"] for row in rows))[:SCANS]:
        for form, grey in zip(FORMS, forms_of(corpus.image(ident), seed_of(0, "known item", ident)), strict=True):
            png = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(grey)).save(png, "PNG")
            answer = pipeline.search(png.getvalue(), SearchParams(k=release.neighbours))
            own = [hit for hit in answer.hits if hashes[hit.image_id] == hashes[ident]]
            found = min(own, key=lambda hit: hit.rank) if own else None
            row = stated[ident, form]
            expected = tuple(row[f"{order}_rank"] for order in ("served", "ann", "score"))
            assert (found and (found.rank, found.ann_rank, found.score_rank)) == (None if found is None else expected)
            assert (found is None) == (row["served_rank"] is None)
            compared += found is not None
    assert compared >= SCANS, "most forms are found"
    assert pytest.approx(release.known_first) == np.mean(
        [row["served_rank"] == 1 for row in rows if row["form"] != FORMS[0]]
    )
