"""Render ``report.html``, one self-contained page: first for clinicians, then for engineers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mrcg.evaluation.figures import Drawing
from mrcg.metrics.bootstrap import Gain
from mrcg.metrics.known_items import Recoveries
from mrcg.metrics.report import Confusion, Report
from mrcg.pages.rendering import render

PROTOCOLS = {
    "paper": "Each scan was assigned at random: {gallery} of the scans form the gallery that is searched, the others "
    "are the queries. This is the split of the published method. Scans of one patient can be in both the gallery and "
    "the queries, which makes the task easier than it is in practice.",
    "dedup": "The scans were assigned at random: {gallery} of them form the gallery that is searched, the others are "
    "the queries. Near-duplicates, and scans of the same patient if the patient is known, were kept together. Hits of "
    "the query's own patient or group were left out: they count neither as right nor as wrong.",
    "given": "The source comes with a training and a test part. The training part is the gallery that is searched; "
    "the test part provides the queries.",
    "folds": "The source comes in folds. One fold provides the queries; the others are the gallery that is searched.",
}
#: Number of frequent errors listed in words.
ERRORS_SHOWN = 3


@dataclass(frozen=True)
class Drawings:
    """The figures of a page; None if there was nothing to draw."""

    confusion: Drawing
    reliability: Drawing
    nodes: Drawing
    distance: Drawing
    curves: Drawing | None
    map: Drawing | None


@dataclass(frozen=True)
class _View:
    """What the template ``report.html.j2`` reads."""

    report: Report
    drawings: Drawings
    picture: bytes
    versions: Sequence[tuple[str, str]]

    @property
    def protocol(self) -> str:
        """How the scans were assigned, in words; empty for a protocol without a text."""
        share = 100 * self.report.gallery / max(1, self.report.gallery + self.report.queries)
        return PROTOCOLS.get(self.report.protocol, "").format(gallery=f"{share:.0f} %")

    @property
    def gain(self) -> Gain:
        """Gain in MAP of the served order."""
        return (self.report.served_gain or self.report.gain).map

    @property
    def known_parts(self) -> list[tuple[str, Recoveries]]:
        """Known items apart, by whether the encoder was trained on them."""
        known = self.report.known_items
        assert known is not None, "the template asks only if there are known items"
        fitted, unseen = known.changed_fitted, known.changed_unseen
        named = (("scans that the encoder was trained on", fitted), ("scans that it was not trained on", unseen))
        return [(name, part) for name, part in named if part is not None]

    @property
    def errors(self) -> list[tuple[str, str | None, int, int]]:
        """The most frequent wrong first hits."""
        return frequent_errors(self.report.confusion)


def report_page(report: Report, drawings: Drawings, picture: bytes, versions: Sequence[tuple[str, str]]) -> bytes:
    """Return the report as one HTML page without scripts or external resources.

    Args:
        report: the report.
        drawings: its figures.
        picture: PNG of queries and their hits.
        versions: kind and version of each artefact that was evaluated.
    """
    return render("report.html.j2", _View(report, drawings, picture, versions))


def frequent_errors(confusion: Confusion) -> list[tuple[str, str | None, int, int]]:
    """Return the most frequent wrong first hits in the served order, at most ``ERRORS_SHOWN``.

    Returns:
        Class of the query, class of the hit (None without a hit or a label), number of such queries, and number of
        queries of the class.
    """
    wrong = [
        (label, hit, count, sum(row))
        for label, row in zip(confusion.classes, confusion.reranked, strict=True)
        for hit, count in zip(confusion.found, row, strict=True)
        if count and hit != label
    ]
    return sorted(wrong, key=lambda error: (-error[2], error[0], error[1] or ""))[:ERRORS_SHOWN]
