"""``report.html``: one self-contained page, for a clinician first and an engineer after."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass

from mrcg.evaluation.figures import Drawing
from mrcg.metrics.bootstrap import Gain, Interval
from mrcg.metrics.report import ClassFigures, Confusion, Report

PROTOCOLS = {
    "paper": "The scans were shared out at random, one by one: {gallery} of them became the gallery that is searched, "
    "the others were the queries. This is the split of the published method. Scans of one patient can stand "
    "on both sides, which makes the task easier than it is in practice.",
    "dedup": "The scans were shared out at random, {gallery} of them for the gallery that is searched, the others as "
    "queries. Near-duplicates, and scans of one patient where patients are known, were kept on one side. A hit of the "
    "query's own patient or group was left out: it is neither right nor wrong.",
    "given": "The source came with a training and a test part; the training part is the gallery that is searched, "
    "the test part the queries.",
    "folds": "The source came in folds; one fold gave the queries, the others the gallery that is searched.",
}
#: Most frequent mix-ups that are put into words.
MIX_UPS = 3
STYLE = """
:root{color-scheme:light dark;--ink:#1b2733;--faint:#5b6b78;--line:#dde4ea;--paper:#fff;--tile:#f3f6f9;--mark:#0072b2;
--warn:#8a5a00;--warnpaper:#fff6e0}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--faint:#9fb0bf;--line:#34414d;--paper:#182129;--tile:#202b35;
--mark:#6db8ea;--warn:#f0c36a;--warnpaper:#2d2818}}
*{box-sizing:border-box}
body{font:16px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:0 auto;max-width:64rem;
padding:2rem 1.2rem 4rem}
h1{font-weight:650;line-height:1.2;margin:0 0 .3rem}h2{margin:2.6rem 0 .6rem;font-weight:600}h3{margin:1.8rem 0 .4rem}
p,li{max-width:46rem}.faint{color:var(--faint)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(14rem,1fr));gap:1rem;margin:1.4rem 0;padding:0}
.tile{background:var(--tile);border-radius:.6rem;padding:1rem 1.2rem;max-width:none}
.tile b{display:block;font-size:2.1rem;line-height:1.2;color:var(--mark)}
.warn{background:var(--warnpaper);border-left:.3rem solid var(--warn);padding:.5rem 1rem .5rem 2.2rem;margin:1rem 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;margin:.8rem 0;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--faint);padding-bottom:.3rem}
th,td{padding:.3rem 1.1rem .3rem 0;border-top:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}th{font-weight:600}
figure{margin:1.2rem 0}figure img{max-width:100%;height:auto;display:block;border-radius:.4rem}
figcaption{color:var(--faint);font-size:.92rem;max-width:46rem;margin-top:.4rem}
code{font-size:.92em}
@media print{body{max-width:none}h2{break-after:avoid}figure,table{break-inside:avoid}}
"""


@dataclass(frozen=True)
class Drawings:
    """The figures of a page; None where there was nothing to draw."""

    confusion: Drawing
    reliability: Drawing
    nodes: Drawing
    distance: Drawing
    curves: Drawing | None
    map: Drawing | None


def report_page(report: Report, drawings: Drawings, picture: bytes, versions: Sequence[tuple[str, str]]) -> bytes:
    """One HTML page without scripts and without anything to fetch.

    Args:
        report: what was measured.
        drawings: its figures.
        picture: PNG of queries and their hits.
        versions: kind and version of each artefact that was measured.
    """
    parts = [
        "<h1>Does the search find scans like the one asked with?</h1>",
        f'<p class="faint">Retrieval report, protocol <code>{_text(report.protocol)}</code>: '
        f"{report.queries:,} test scans, asked against a gallery of {report.gallery:,}.</p>",
        _in_short(report),
        _tested(report),
        _caveats(report),
        _errors(report, drawings),
        _hits(report, picture),
        _trust(report, drawings),
        _details(report, drawings, versions),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Retrieval report, protocol {_text(report.protocol)}</title>"
        f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    ).encode()


def _in_short(report: Report) -> str:
    after, bounds = report.reranked, report.reranked.intervals
    tiles = (
        (
            f"{10 * after.precision_at_10:.1f} of 10",
            "of the first ten hits show the same class as the query, on average "
            f"(95 % interval {10 * bounds.precision_at_10.low:.1f} to {10 * bounds.precision_at_10.high:.1f})",
        ),
        (f"{100 * after.precision_at_1:.1f} %", "of the queries have a first hit of their own class"),
        (
            f"{100 * after.map:.1f} %",
            "mean average precision (MAP): 100 % means that every right hit stands before every wrong one "
            f"(95 % interval {_bounds(bounds.map)})",
        ),
    )
    shown = "".join(f'<div class="tile"><b>{_text(big)}</b>{_text(small)}</div>' for big, small in tiles)
    return f'<div class="tiles">{shown}</div><p>{_text(_gain_in_words(report.gain.map))}</p>'


def _gain_in_words(gain: Gain) -> str:
    change = f"{100 * gain.mean:+.1f} points of MAP (95 % interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    if gain.low > 0:
        said = "The second step, which reorders the hits by how they relate to each other, helped"
    elif gain.high < 0:
        said = "The second step, which reorders the hits by how they relate to each other, made the order worse"
    else:
        said = (
            "Whether the second step, which reorders the hits by how they relate to each other, helps "
            "cannot be told from this test"
        )
    return f"{said}: {change}."


def _tested(report: Report) -> str:
    share = 100 * report.gallery / max(1, report.gallery + report.queries)
    protocol = PROTOCOLS.get(report.protocol, "").format(gallery=f"{share:.0f} %")
    classes = ", ".join(f"{label} ({figures.queries:,})" for label, figures in report.ann.per_class.items())
    return (
        "<h2>What was tested</h2>"
        f"<p>{_text(protocol)} Every query was compared with the whole gallery, and its {report.depth} most similar "
        "scans were listed, best first. A hit counts as right when it carries the same class label as the query.</p>"
        f"<p>Classes of the queries: {_text(classes)}.</p>"
        "<p>A 95 % interval says how far a number may move by the luck of which scans were in the test: "
        "the test was repeated in the computer with patients, or groups of near-identical scans, drawn anew "
        f"{report.bootstrap:,} times, and 95 % of the repetitions lie in it. It does not say how other hospitals, "
        "scanners or patients would differ.</p>"
    )


def _caveats(report: Report) -> str:
    leak, share = report.leakage, report.leaking_queries / max(1, report.queries)
    own = (
        "a near-duplicate of themselves"
        if not leak.patients_known
        else ("a scan of their own patient or a near-duplicate of themselves")
    )
    said = [
        "This is a research system and not a medical device. It finds similar pictures; it makes no diagnosis.",
        "Right means the same class label. Whether the scans are alike in what matters to a patient was not judged.",
        f"{report.leaking_queries:,} of {report.queries:,} queries ({100 * share:.1f} %) have {own} in the gallery."
        + (" Such queries are easy, so the figures above are flattering." if report.leaking_queries else ""),
    ]
    if leak.near_duplicates and leak.patients_known:
        said.append(f"{leak.near_duplicates:,} queries have a near-duplicate in the gallery, whoever the patient is.")
    if leak.patients_known:
        said.append(
            f"The patient is known for {leak.patients_known:,} queries; of those {leak.same_patient:,} have "
            "another scan in the gallery."
        )
    if leak.patients_known < report.queries:
        said.append(report.caveat)
    items = "".join(f"<li>{_text(one)}</li>" for one in said)
    return f'<h2>What to keep in mind</h2><ul class="warn">{items}</ul>'


def _errors(report: Report, drawings: Drawings) -> str:
    rows = "".join(
        f"<tr><td>{_text(label)}</td><td>{after.queries:,}</td><td>{100 * after.precision_at_1:.1f} %</td>"
        f"<td>{10 * after.precision_at_10:.1f}</td><td>{_tens(after.intervals.precision_at_10)}</td>"
        f"<td>{100 * after.map:.1f} %</td><td>{_bounds(after.intervals.map)}</td></tr>"
        for label, after in report.reranked.per_class.items()
    )
    mixed = mix_ups(report.confusion)
    said = "".join(
        f"<li>{_text(f'{count:,} of {total:,} queries of class {query}: the first hit was {hit}')}</li>"
        if hit is not None
        else f"<li>{_text(f'{count:,} of {total:,} queries of class {query}: nothing was found')}</li>"
        for query, hit, count, total in mixed
    )
    return (
        "<h2>Where it errs</h2>"
        + (f"<p>The most frequent mix-ups:</p><ul>{said}</ul>" if said else "<p>Every first hit was right.</p>")
        + '<div class="scroll"><table><caption>By class of the query, hits as they are shown</caption>'
        "<tr><th>class</th><th>queries</th><th>first hit right</th><th>right of 10</th><th>95 % interval</th>"
        f"<th>MAP</th><th>95 % interval</th></tr>{rows}</table></div>"
        + _figure(drawings.confusion, "Rows are classes of queries, columns classes of their first hits; right hits "
                  "lie where both are the same. Numbers are queries, colour is the share of the row.")
    )  # fmt: skip


def mix_ups(confusion: Confusion) -> list[tuple[str, str | None, int, int]]:
    """The most frequent wrong first hits after reranking: class of the query, of the hit, how many, of how many."""
    wrong = [
        (label, found, count, sum(row))
        for label, row in zip(confusion.classes, confusion.reranked, strict=True)
        for found, count in zip(confusion.found, row, strict=True)
        if count and found != label
    ]
    return sorted(wrong, key=lambda one: (-one[2], one[0], one[1] or ""))[:MIX_UPS]


def _hits(report: Report, picture: bytes) -> str:
    source = _uri("image/png", picture)
    return (
        "<h2>What the hits look like</h2>"
        f'<figure><img alt="Test queries and their first hits" src="{source}"><figcaption>Left the query, then its '
        "first ten hits, best first: green frames are of the query's class, orange-red ones are not. The queries were "
        "drawn by lot, class by class, not by how well they did.</figcaption></figure>"
    )


def _trust(report: Report, drawings: Drawings) -> str:
    calibration, far = report.calibration, report.out_of_distribution
    raw = 100 * calibration.raw.expected_error
    said = (
        f"Every hit has a score between 0 and 1. As it is, the score is off by {raw:.1f} points on average from the "
        "share of such hits that are right (the expected calibration error)."
    )
    if calibration.calibrated is not None:
        said += (
            f" With a correction learned on other scans than these it is off by "
            f"{100 * calibration.calibrated.expected_error:.1f}."
        )
    else:
        said += " There were no validation scans to learn a correction from."
    if far.threshold is None:
        flag = "There were no validation scans to learn from how far is too far: no query is flagged as unfamiliar."
    else:
        flag = (
            "A query that lies farther from the gallery than nearly all validation scans is flagged as unfamiliar: its "
            f"hits deserve less trust. {far.flagged:,} of {report.queries:,} test queries "
            f"({100 * far.flagged / max(1, report.queries):.1f} %) were flagged; by design it is about "
            f"{100 * (1 - far.quantile):.0f} % of ordinary scans."
        )
    return (
        "<h2>How far the scores can be trusted</h2>"
        f"<p>{_text(said)}</p>"
        + _figure(drawings.reliability, "A perfect score lies on the dotted line; above it a score is too modest, "
                  "below it too bold. Bars: how many hits have such a score.")
        + f"<h3>Unfamiliar queries</h3><p>{_text(flag)}</p>"
        + _figure(drawings.distance, "Squared L2 distance between the embeddings of a query and its nearest hit. "
                  "Validation queries never find their own group, test queries may where the protocol lets them.")
    )  # fmt: skip


def _details(report: Report, drawings: Drawings, versions: Sequence[tuple[str, str]]) -> str:
    orders = "".join(
        f"<tr><td>{name}</td>{_cells(figures)}</tr>"
        for name, figures in (("ANN", report.ann), ("reranked", report.reranked))
    )
    gains = "".join(
        f"<tr><td>{name}</td><td>{100 * gain.mean:+.2f}</td>"
        f"<td>{100 * gain.low:+.2f} to {100 * gain.high:+.2f}</td></tr>"
        for name, gain in (
            ("MAP", report.gain.map), ("MAP (full)", report.gain.map_full), ("P@10", report.gain.precision_at_10),
        )
    )  # fmt: skip
    platt = report.calibration.map
    facts = [
        ("recall@50 of the index against exact search", f"{100 * report.index_recall_at_50:.1f} %"),
        ("epochs of the encoder", f"{report.encoder_epochs}"),
        ("hits masked as the query's own", f"{report.masked_hits:,}"),
        ("out-of-distribution threshold, squared L2", _number(report.out_of_distribution.threshold)),
        ("median distance of test queries, squared L2", _number(report.out_of_distribution.median_distance)),
        ("calibration: temperature, bias", "none" if platt is None else f"{platt.temperature:.3f}, {platt.bias:+.3f}"),
        *((f"{kind}", version) for kind, version in versions),
    ]
    pinned = "".join(f"<tr><td>{_text(name)}</td><td>{_text(value)}</td></tr>" for name, value in facts)
    nodes = "Nodes of a query graph that have the query's class (the paper's Fig. 8 and 9). Where training graphs are "
    nodes += "easier than test graphs, the reranker learns on lists that it will not see."
    return (
        "<h2>For engineers</h2>"
        f'<div class="scroll"><table><caption>All queries, %; 95 % intervals below MAP and P@10</caption><tr><th>order'
        "</th><th>MAP</th><th>MAP (full)</th><th>P@1</th><th>P@5</th><th>P@10</th><th>recall@10</th><th>recall@50</th>"
        f"</tr>{orders}</table></div>"
        "<p>MAP divides by the relevant hits among the listed ones, MAP (full) by those that the gallery could have "
        "given, at most the depth of the list. Recall divides by all relevant scans of the gallery. P@1 is also hit@1."
        "</p>"
        f"<table><caption>Reranked less ANN order, points; paired bootstrap over groups, {report.bootstrap:,} resamples"
        f"</caption><tr><th>metric</th><th>change</th><th>95 % interval</th></tr>{gains}</table>"
        + (_figure(drawings.map, "t-SNE of embeddings, started from their principal components. Distances between far "
                   "clusters mean nothing.") if drawings.map else "")
        + _figure(drawings.nodes, nodes)
        + (_figure(drawings.curves, "Loss on the training part, MAP on the validation part. "
                   "The dotted line is the epoch that was kept.")
           if drawings.curves else "")
        + f'<div class="scroll"><table><caption>Facts and versions</caption>{pinned}</table></div>'
    )  # fmt: skip


def _cells(figures: ClassFigures) -> str:
    bounds = figures.intervals
    values = (
        (figures.map, bounds.map), (figures.map_full, bounds.map_full), (figures.precision_at_1, None),
        (figures.precision_at_5, None), (figures.precision_at_10, bounds.precision_at_10),
        (figures.recall_at_10, None), (figures.recall_at_50, None),
    )  # fmt: skip
    return "".join(
        f"<td>{100 * mean:.1f}" + (f'<br><span class="faint">{_bounds(one)}</span>' if one else "") + "</td>"
        for mean, one in values
    )


def _figure(drawing: Drawing, caption: str) -> str:
    light, dark = (_uri("image/svg+xml", data) for data in (drawing.light, drawing.dark))
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="{_text(drawing.says)}" src="{light}"></picture><figcaption>{_text(caption)}</figcaption></figure>'
    )


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _bounds(bounds: Interval) -> str:
    return f"{100 * bounds.low:.1f} to {100 * bounds.high:.1f}"


def _tens(bounds: Interval) -> str:
    return f"{10 * bounds.low:.1f} to {10 * bounds.high:.1f}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _text(value: str) -> str:
    return html.escape(value, quote=True)
