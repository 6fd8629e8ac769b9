"""Render the page of a label audit: each scan beside its nearest neighbours, without scripts or external resources."""

from __future__ import annotations

import io
from collections.abc import Mapping

from PIL import Image

from mrcg.corpus.reader import Corpus
from mrcg.evaluation.html_parts import STYLE, bounds, escaped, image_uri
from mrcg.evaluation.label_audit import AuditedScan, FlaggedFigures, LabelAudit, MapOf
from mrcg.imaging.slices import Grey

#: Longer side of a picture in pixels: a scan and its five neighbours fit into one row of the page.
SIDE = 144
UPPER_BOUND = (
    "The figure without the flagged queries is an upper bound: a query may be flagged because it is hard although its "
    "label is right, and leaving out hard queries alone raises the figure. The figure without matched queries shows by "
    "how much: it leaves out unflagged queries of the same classes that are about as hard."
)
_PAGE_STYLE = f"""
.scans{{display:flex;flex-wrap:wrap;gap:.8rem;margin:.6rem 0 2rem}}
.scans figure{{margin:0;width:{SIDE + 2}px}}
.scans img{{border:4px solid var(--line);background:#000;max-width:100%}}
.scans .same img{{border-color:#009e73}}.scans .other img{{border-color:#d55e00}}
.scans .own{{margin-right:1.2rem}}
.scans figcaption{{overflow-wrap:anywhere;font-size:.85rem}}
h3{{overflow-wrap:anywhere}}
"""

Pictures = Mapping[str, Grey]


def pictures_of(audit: LabelAudit, corpus: Corpus) -> dict[str, Grey]:
    """Return the grey levels of the scans in the rows and of their neighbours, by image id."""
    ids = {scan.image_id for scan in audit.rows}
    ids |= {near.image_id for scan in audit.rows for near in scan.neighbours}
    rows = sorted(corpus.row_of(ident) for ident in ids)
    names = corpus.scans["image_id"].take(rows).to_pylist()
    return {names[place]: grey for place, grey in corpus.images(rows)}


def audit_page(audit: LabelAudit, pictures: Pictures) -> bytes:
    """Return the page of an audit's rows as HTML, UTF-8.

    Args:
        audit: the audit; its rows are those that the page shows.
        pictures: grey levels by image id, of all scans that the rows name.
    """
    parts = [
        "<h1>Labels that contradict their neighbours</h1>",
        f'<p class="faint">Label audit of corpus <code>{escaped(audit.corpus)}</code>: {audit.flagged:,} of '
        f"{audit.scans:,} scans are flagged. The page shows {len(audit.rows):,} scans, worst first.</p>",
        _notes(audit),
        "" if audit.figures is None else _figures(audit.figures),
        "<h2>Scans</h2>",
        "<p>The scan is on the left, followed by the nearest labelled scans of other groups. Neighbours with the same "
        "label have a green frame, others an orange-red one.</p>",
        *(_scan(number, scan, pictures) for number, scan in enumerate(audit.rows, 1)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Label audit</title><style>{STYLE}{_PAGE_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    ).encode()


def _notes(audit: LabelAudit) -> str:
    notes = [
        "A flagged scan is not proven to be wrong: it may be an unusual scan of its class. A scan that is not flagged "
        "is not proven to be right. Someone who can judge the scan decides.",
        "Nothing was relabelled.",
    ]
    if audit.rare:
        rare = ", ".join(f"{label} ({count:,})" for label, count in audit.rare.items())
        notes.append(f"Not audited, because the class has too few scans to learn from: {rare}.")
    if audit.unlabelled:
        notes.append(f"Not audited, because they have no label: {audit.unlabelled:,} scans.")
    return f'<ul class="warn">{"".join(f"<li>{escaped(note)}</li>" for note in notes)}</ul>'


def _figures(figures: FlaggedFigures) -> str:
    rows = (
        ("all test queries", figures.all_queries),
        ("without the flagged ones (upper bound)", figures.without_flagged),
        ("without as many matched by class and margin", figures.without_matched),
    )
    return (
        "<h2>Effect on the report</h2>"
        '<div class="scroll"><table><caption>MAP of the served order, %; report '
        f"<code>{escaped(figures.report)}</code></caption>"
        "<tr><th></th><th>queries</th><th>MAP</th><th>95 % interval</th></tr>"
        + "".join(f"<tr><td>{name}</td>{_cells(row)}</tr>" for name, row in rows)
        + f"</table></div><p>{escaped(UPPER_BOUND)}</p>"
    )


def _cells(row: MapOf) -> str:
    return f"<td>{row.queries:,}</td><td>{100 * row.map:.1f}</td><td>{bounds(row.interval)}</td>"


def _scan(number: int, scan: AuditedScan, pictures: Pictures) -> str:
    agrees = scan.suggested == scan.label
    facts = [
        "flagged" if scan.flagged else "not flagged",
        f"labelled <b>{escaped(scan.label)}</b>",
        "which its neighbours support most" if agrees else f"its neighbours suggest <b>{escaped(scan.suggested)}</b>",
        f"probability of its label {100 * scan.probability:.0f} %",
    ]
    ids = f"image {scan.image_id}, group {scan.group_id}, part {scan.part}"
    shown = [_picture("own", scan.image_id, scan.label, "this scan", pictures)]
    for place, near in enumerate(scan.neighbours, 1):
        kind = "same" if near.label == scan.label else "other"
        shown.append(_picture(kind, near.image_id, near.label, f"neighbour {place}", pictures))
    return (
        f"<h3>{number}. {escaped(scan.source_key)}</h3><p>{', '.join(facts)}<br>"
        f'<span class="faint">{escaped(ids)}</span></p><div class="scans">{"".join(shown)}</div>'
    )


def _picture(kind: str, image_id: str, label: str, role: str, pictures: Pictures) -> str:
    return (
        f'<figure class="{kind}"><img alt="{escaped(f"{role}, {label}")}" src="{_png_uri(pictures[image_id])}">'
        f"<figcaption>{escaped(label)}<br>{escaped(image_id)}</figcaption></figure>"
    )


def _png_uri(pixels: Grey) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return image_uri("image/png", out.getvalue())
