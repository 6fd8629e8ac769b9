"""What labels, ids and file names hold is shown as text in every page, whatever it is."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcg.corpus.report import Inventory, inventory_page
from mrcg.evaluation.figures import Drawing
from mrcg.evaluation.html_report import Drawings, report_page
from mrcg.evaluation.label_audit import AuditedScan, LabelAudit, NamedNeighbour
from mrcg.evaluation.label_page import audit_page
from mrcg.metrics.report import Report

REPORT = Report.model_validate_json(
    (Path(__file__).parents[3] / "docs" / "reports" / "phantoms-paper-seed-1.json").read_bytes()
)
HOSTILE = ("<script>alert(1)</script>", "\"><img src=x onerror='1'>", "&lt;b&gt; {{ 7 * 7 }} {% raw %}", "</style><b>")
names = st.one_of(
    st.sampled_from(HOSTILE), st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
)


class Elements(HTMLParser):
    """Collects the start tags with the names of their attributes, and the text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.alts = [], [], []
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, sorted(name for name, _ in attrs)))
        self.alts += [value for name, value in attrs if name == "alt"]

    def handle_data(self, data):
        self.text.append(data)


def of_report(name):
    drawing = Drawing(b"<svg/>", b"<svg/>", name)
    figures = REPORT.ann.per_class["glioma_tumor"]
    ann = REPORT.ann.model_copy(update={"per_class": {name: figures}})
    confusion = REPORT.confusion.model_copy(
        update={"classes": (name,), "found": (name, None), "ann": ((1, 1),), "reranked": ((1, 1),)}
    )
    report = REPORT.model_copy(
        update={"ann": ann, "served": ann, "confusion": confusion, "caveat": name, "protocol": name}
    )
    return report_page(report, Drawings(*[drawing] * 6), b"png", [("corpus", name)])


def of_audit(name):
    near = NamedNeighbour(image_id=name, label=name)
    scan = AuditedScan.model_construct(
        image_id=name, source_key=name, label=name, suggested=name + "x", probability=0.1, margin=-0.8, group_id=name,
        part="test", flagged=True, neighbours=(near,),
    )  # fmt: skip
    audit = LabelAudit.model_construct(
        corpus=name, scans=1, flagged=1, rare={name: 1}, unlabelled=0, rows=(scan,), figures=None
    )
    return audit_page(audit, {name: np.zeros((4, 4), np.uint8)})


def of_inventory(name):
    counts = {name: 1}
    inventory = Inventory.model_construct(
        version=name, files=1, images=1, patients=0, groups=1, exact_copies=0, near_duplicates=0, conflicting_copies=0,
        bad_files=0, bad_fraction=0.0, deidentified=False, by={"label": counts}, splits={name: counts}, reasons=counts,
    )  # fmt: skip
    return inventory_page(inventory, b"png")


@pytest.mark.parametrize("page_of", [of_report, of_audit, of_inventory])
@settings(max_examples=20)
@given(name=names)
def test_names_are_text(page_of, name):
    page, plain = Elements(page_of(name)), Elements(page_of("plain"))
    assert page.tags == plain.tags, "a name adds no element and no attribute"
    shown = "".join([*page.text, *map(str, page.alts)])
    assert name in shown
