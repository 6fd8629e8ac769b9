"""Render the page of a label audit: each scan beside its nearest neighbours, without scripts or external resources."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from mrcg.corpus.reader import Corpus
from mrcg.evaluation.label_audit import LabelAudit
from mrcg.imaging.slices import Grey
from mrcg.pages.rendering import render

#: Longer side of a picture in pixels: a scan and its five neighbours fit into one row of the page.
SIDE = 144
UPPER_BOUND = (
    "The figure without the flagged queries is an upper bound: a query may be flagged because it is hard although its "
    "label is right, and leaving out hard queries alone raises the figure. The figure without matched queries shows by "
    "how much: it leaves out unflagged queries of the same classes that are about as hard."
)
Pictures = Mapping[str, Grey]


def pictures_of(audit: LabelAudit, corpus: Corpus) -> dict[str, Grey]:
    """Return the grey levels of the scans in the rows and of their neighbours, by image id."""
    ids = {scan.image_id for scan in audit.rows}
    ids |= {near.image_id for scan in audit.rows for near in scan.neighbours}
    rows = sorted(corpus.row_of(ident) for ident in ids)
    names = corpus.scans["image_id"].take(rows).to_pylist()
    return {names[place]: grey for place, grey in corpus.images(rows)}


@dataclass(frozen=True)
class _View:
    """What the template ``label_audit.html.j2`` reads."""

    audit: LabelAudit
    pictures: Pictures
    side: int = SIDE
    upper_bound: str = UPPER_BOUND

    def picture(self, image_id: str) -> bytes:
        """Return a scan as PNG, at most ``side`` pixels long."""
        image = Image.fromarray(self.pictures[image_id])
        image.thumbnail((self.side, self.side), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        image.save(out, "PNG", optimize=True)
        return out.getvalue()


def audit_page(audit: LabelAudit, pictures: Pictures) -> bytes:
    """Return the page of an audit's rows as HTML, UTF-8.

    Args:
        audit: the audit; its rows are those that the page shows.
        pictures: grey levels by image id, of all scans that the rows name.
    """
    return render("label_audit.html.j2", _View(audit, pictures))
