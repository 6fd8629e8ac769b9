"""Render ``report.html``, one self-contained page: first for clinicians, then for engineers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mrcg.evaluation.figures import Drawing
from mrcg.evaluation.html_parts import STYLE, bounds, escaped, figure, image_uri, number, out_of_ten
from mrcg.metrics.bootstrap import Gain
from mrcg.metrics.order import OrderChoice
from mrcg.metrics.report import ClassFigures, Confusion, Report

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


def report_page(report: Report, drawings: Drawings, picture: bytes, versions: Sequence[tuple[str, str]]) -> bytes:
    """Return the report as one HTML page without scripts or external resources.

    Args:
        report: the report.
        drawings: its figures.
        picture: PNG of queries and their hits.
        versions: kind and version of each artefact that was evaluated.
    """
    parts = [
        "<h1>Does the search find similar scans?</h1>",
        f'<p class="faint">Retrieval report, protocol <code>{escaped(report.protocol)}</code>: '
        f"{report.queries:,} test scans searched in a gallery of {report.gallery:,}.</p>",
        _summary(report),
        _test_setup(report),
        _caveats(report),
        _known_items(report),
        _neighbouring_slices(report),
        _graded_likeness(report),
        _errors(report, drawings),
        _hits(report, picture),
        _score_reliability(report, drawings),
        _details(report, drawings, versions),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Retrieval report, protocol {escaped(report.protocol)}</title>"
        f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    ).encode()


def _summary(report: Report) -> str:
    after, intervals = report.served_figures, report.served_figures.intervals
    tiles = (
        (
            f"{10 * after.precision_at_10:.1f} of 10",
            "of the first ten hits show the same class as the query, on average "
            f"(95 % interval {10 * intervals.precision_at_10.low:.1f} to {10 * intervals.precision_at_10.high:.1f})",
        ),
        (f"{100 * after.precision_at_1:.1f} %", "of the queries have a first hit of the same class"),
        (
            f"{100 * after.map:.1f} %",
            "mean average precision (MAP): 100 % means that every right hit comes before every wrong one "
            f"(95 % interval {bounds(intervals.map)})",
        ),
    )
    shown = "".join(f'<div class="tile"><b>{escaped(value)}</b>{escaped(meaning)}</div>' for value, meaning in tiles)
    gain = report.gain if report.served_gain is None else report.served_gain
    return f'<div class="tiles">{shown}</div><p>{escaped(_gain_in_words(gain.map))}</p>'


def _gain_in_words(gain: Gain) -> str:
    change = f"{100 * gain.mean:+.1f} points of MAP (95 % interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    if gain.low > 0:
        effect = "improved the order"
    elif gain.high < 0:
        effect = "made the order worse"
    else:
        effect = "had no clear effect in this test"
    return f"The second step, which reorders the nearest scans, {effect}: {change}."


def _test_setup(report: Report) -> str:
    share = 100 * report.gallery / max(1, report.gallery + report.queries)
    protocol = PROTOCOLS.get(report.protocol, "").format(gallery=f"{share:.0f} %")
    classes = ", ".join(f"{label} ({figures.queries:,})" for label, figures in report.ann.per_class.items())
    return (
        "<h2>What was tested</h2>"
        f"<p>{escaped(protocol)} Every query was compared with the whole gallery, and its {report.depth} most similar "
        "scans were listed, best first. A hit counts as right if it has the same class label as the query.</p>"
        f"<p>Classes of the queries: {escaped(classes)}.</p>"
        "<p>A 95 % interval shows how much a number depends on which scans happened to be in the test. Patients, or "
        f"groups of near-identical scans, were redrawn at random {report.bootstrap:,} times; 95 % of the results lie "
        "in the interval. It does not show how results would differ for other hospitals, scanners or patients.</p>"
    )


def _caveats(report: Report) -> str:
    leak, share = report.leakage, report.leaking_queries / max(1, report.queries)
    own = (
        "a near-duplicate of themselves"
        if not leak.patients_known
        else ("a scan of their own patient or a near-duplicate of themselves")
    )
    notes = [
        "This is a research system and not a medical device. It finds similar images; it makes no diagnosis.",
        "Right means the same class label. Whether scans are similar in a clinically relevant way was not assessed.",
        f"{report.leaking_queries:,} of {report.queries:,} queries ({100 * share:.1f} %) have {own} in the gallery."
        + (" Such queries are easy, so the figures above are too optimistic." if report.leaking_queries else ""),
    ]
    if leak.near_duplicates and leak.patients_known:
        notes.append(f"{leak.near_duplicates:,} queries have a near-duplicate in the gallery, from any patient.")
    if leak.patients_known:
        notes.append(
            f"The patient is known for {leak.patients_known:,} queries; for {leak.same_patient:,} of them, the gallery "
            "has another scan of the same patient."
        )
    if leak.patients_known < report.queries:
        notes.append(report.caveat)
    items = "".join(f"<li>{escaped(note)}</li>" for note in notes)
    return f'<h2>What to keep in mind</h2><ul class="warn">{items}</ul>'


def _known_items(report: Report) -> str:
    """Say in words whether a scan that is in the gallery is found, which the classes cannot tell."""
    known = report.known_items
    if known is None:
        return ""
    same, changed = known.unchanged.served, known.changed.served
    rows = "".join(
        f"<tr><td>{escaped(change)}</td>"
        + "".join(f"<td>{100 * share:.0f} %</td>" for share in (shares.ann, shares.score, shares.served))
        + "</tr>"
        for change, shares in known.by_change.items()
    )
    parts = [
        (name, part)
        for name, part in (
            ("scans that the encoder was trained on", known.changed_fitted),
            ("scans that it was not trained on", known.changed_unseen),
        )
        if part is not None
    ]
    apart = "; ".join(
        f"{name} ({part.items:,}): {100 * part.served.first:.0f} % ({bounds(part.served.first_interval)})"
        for name, part in parts
    )
    asked = (
        f"{known.unchanged.items:,} scans of the gallery were searched for by their own pixels, as they are and after "
        "small changes, as when a scan is exported again. Above, any scan of the right class counts as right; here "
        "only the scan itself does."
    )
    found = (
        f"Unchanged, {100 * same.first:.1f} % of the scans are their own first hit. Changed, it is "
        f"{100 * changed.first:.1f} % (95 % interval {bounds(changed.first_interval)}), and "
        f"{100 * changed.in_10:.1f} % are among their first ten hits. Apart: {apart}."
    )
    return (
        f"<h2>Does a scan find itself?</h2><p>{escaped(asked)}</p><p>{escaped(found)}</p>"
        '<div class="scroll"><table><caption>Share of the changed scans that are their own first hit</caption>'
        f"<tr><th>change</th><th>by distance</th><th>by score</th><th>as served</th></tr>{rows}</table></div>"
    )


def _neighbouring_slices(report: Report) -> str:
    beside = report.neighbouring_slices
    if beside is None:
        return ""
    text = (
        f"For {beside.queries:,} queries, the gallery has the slice before or after the query, of the same series. "
        f"Such a slice is the first hit of {100 * beside.first.served:.0f} % of them, and among the first ten of "
        f"{100 * beside.in_10.served:.0f} % (by score alone: {100 * beside.first.score:.0f} % and "
        f"{100 * beside.in_10.score:.0f} %)."
    )
    return f"<p>{escaped(text)}</p>"


def _graded_likeness(report: Report) -> str:
    """Say in words whether the first hits are alike in plane and lesion, where that is known."""
    likeness = report.graded_likeness
    if likeness is None:
        return ""
    text = (
        f"{likeness.queries:,} of the {likeness.known:,} queries whose lesion is known were graded. A hit of the "
        "query's class has grade 1, and 1 more for "
        "each of these that it shares with the query: the plane, and the place, the size and the contrast of the "
        "lesion. The table compares the first ten hits with the ten best scans of the gallery in the best order "
        "(nDCG@10): 100 % is the best that the gallery allows."
    )
    rows = "".join(
        f"<tr><td>{name}</td><td>{100 * figure.mean:.1f} %</td><td>{bounds(figure.interval)}</td></tr>"
        for name, figure in (
            ("by distance", likeness.ann), ("by score", likeness.score), ("served", likeness.served),
            ("random order of the same hits", likeness.chance),
        )
    )  # fmt: skip
    return (
        f"<h2>Are the first hits alike?</h2><p>{escaped(text)}</p><table><caption>Graded likeness of the first ten hits"
        f"</caption><tr><th>order</th><th>nDCG@10</th><th>95 % interval</th></tr>{rows}</table>"
    )


def _errors(report: Report, drawings: Drawings) -> str:
    rows = "".join(
        f"<tr><td>{escaped(label)}</td><td>{after.queries:,}</td><td>{100 * after.precision_at_1:.1f} %</td>"
        f"<td>{10 * after.precision_at_10:.1f}</td><td>{out_of_ten(after.intervals.precision_at_10)}</td>"
        f"<td>{100 * after.map:.1f} %</td><td>{bounds(after.intervals.map)}</td></tr>"
        for label, after in report.served_figures.per_class.items()
    )
    errors = "".join(
        f"<li>{escaped(f'{count:,} of {total:,} queries of class {query}: the first hit is {hit}')}</li>"
        if hit is not None
        else f"<li>{escaped(f'{count:,} of {total:,} queries of class {query}: no hit, or a hit without a label')}</li>"
        for query, hit, count, total in frequent_errors(report.confusion)
    )
    return (
        "<h2>Errors</h2>"
        + (f"<p>The most frequent errors:</p><ul>{errors}</ul>" if errors else "<p>Every first hit is right.</p>")
        + '<div class="scroll"><table><caption>By class of the query, served order</caption>'
        "<tr><th>class</th><th>queries</th><th>first hit right</th><th>right of 10</th><th>95 % interval</th>"
        f"<th>MAP</th><th>95 % interval</th></tr>{rows}</table></div>"
        + figure(drawings.confusion, "Rows are the classes of the queries, columns the classes of their first hits; "
                  "right hits are where both are the same. Numbers are queries; the colour is the share of the row.")
    )  # fmt: skip


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


def _hits(report: Report, picture: bytes) -> str:
    source = image_uri("image/png", picture)
    return (
        "<h2>Examples</h2>"
        f'<figure><img alt="Test queries and their first hits" src="{source}"><figcaption>The query is on the '
        "left, followed by its first ten hits, best first: one row by distance, one by score alone, one as served. "
        "Hits of the query's class have a green frame, others an orange-red one. The queries were chosen at random "
        "from each class, regardless of their results."
        "</figcaption></figure>"
    )


def _score_reliability(report: Report, drawings: Drawings) -> str:
    calibration, far = report.calibration, report.out_of_distribution
    raw = 100 * calibration.raw.expected_error
    scores = (
        f"Every hit has a score between 0 and 1. On average, the raw score differs by {raw:.1f} points from the share "
        "of such hits that are right (the expected calibration error)."
    )
    if calibration.withheld is not None:
        scores += f" Answers show no probability: {calibration.withheld}."
    elif calibration.calibrated is not None:
        scores += (
            f" With a correction fitted on the validation scans it differs by "
            f"{100 * calibration.calibrated.expected_error:.1f} points; answers show it as a probability."
        )
    if far.threshold is None:
        flag = "There were no validation scans to derive a threshold from, so no query is flagged as unfamiliar."
    else:
        flag = (
            "A query that is farther from the gallery than nearly all validation scans is flagged as unfamiliar: its "
            f"hits are less reliable. {far.flagged:,} of {report.queries:,} test queries "
            f"({100 * far.flagged / max(1, report.queries):.1f} %) were flagged; by design, about "
            f"{100 * (1 - far.quantile):.0f} % of ordinary scans are."
        )
    return (
        "<h2>Reliability of the scores</h2>"
        f"<p>{escaped(scores)}</p>"
        + figure(drawings.reliability, "A perfectly calibrated score lies on the dotted line. Above the line scores "
                  "are too low, below it too high. The bars count the hits with such a score.")
        + f"<h3>Unfamiliar queries</h3><p>{escaped(flag)}</p>"
        + figure(drawings.distance, "Squared L2 distance between the embeddings of a query and its nearest hit. "
                  "Validation queries never find their own group; test queries may, if the protocol allows it.")
    )  # fmt: skip


def _details(report: Report, drawings: Drawings, versions: Sequence[tuple[str, str]]) -> str:
    orders = "".join(
        f"<tr><td>{name}</td>{_cells(figures)}</tr>"
        for name, figures in (
            ("by distance (ANN)", report.ann),
            ("by score", report.reranked),
            ("served", report.served_figures),
        )
    )
    gains = "".join(
        f"<tr><td>{order}: {name}</td><td>{100 * gain.mean:+.2f}</td>"
        f"<td>{100 * gain.low:+.2f} to {100 * gain.high:+.2f}</td></tr>"
        for order, each in (("by score", report.gain), ("served", report.served_gain))
        if each is not None
        for name, gain in (("MAP", each.map), ("MAP (full)", each.map_full), ("P@10", each.precision_at_10))
    )
    platt = report.calibration.map
    facts = [
        ("recall@50 of the index against exact search", f"{100 * report.index_recall_at_50:.1f} %"),
        ("epochs of the encoder", f"{report.encoder_epochs}"),
        ("hits removed because of the query's own group or patient", f"{report.masked_hits:,}"),
        ("out-of-distribution threshold, squared L2", number(report.out_of_distribution.threshold)),
        ("median distance of test queries, squared L2", number(report.out_of_distribution.median_distance)),
        ("calibration: temperature, bias", "none" if platt is None else f"{platt.temperature:.3f}, {platt.bias:+.3f}"),
        *((f"{kind}", version) for kind, version in versions),
    ]
    fact_rows = "".join(f"<tr><td>{escaped(name)}</td><td>{escaped(value)}</td></tr>" for name, value in facts)
    nodes = (
        "Nodes of a query graph that have the query's class (paper Fig. 8 and 9). If training graphs are easier than "
        "test graphs, the reranker is trained on lists unlike those it will score."
    )
    return (
        "<h2>For engineers</h2>"
        '<div class="scroll"><table><caption>All queries, %; 95 % intervals below MAP, MAP (full) and P@10</caption>'
        "<tr><th>order</th><th>MAP</th><th>MAP (full)</th><th>P@1</th><th>P@5</th><th>P@10</th><th>recall@10</th>"
        f"<th>recall@50</th></tr>{orders}</table></div>"
        "<p>MAP divides by the number of relevant hits in the list, MAP (full) by the number of relevant scans that "
        "the query can find in the gallery, at most the length of the list. Recall divides by all relevant scans that "
        "the query can find. P@1 equals hit@1.</p>"
        f"<table><caption>Gain over the order by distance, points; paired bootstrap over groups, {report.bootstrap:,} "
        f"resamples</caption><tr><th>metric</th><th>change</th><th>95 % interval</th></tr>{gains}</table>"
        + _order_grid(report.order)
        + (figure(drawings.map, "t-SNE of the embeddings, initialised with their principal components. Distances "
                   "between distant clusters have no meaning.") if drawings.map else "")
        + figure(drawings.nodes, nodes)
        + (figure(drawings.curves, "Loss on the training part, MAP on the validation part. "
                   "The dotted line marks the epoch whose weights are kept.")
           if drawings.curves else "")
        + f'<div class="scroll"><table><caption>Facts and versions</caption>{fact_rows}</table></div>'
    )  # fmt: skip


def _order_grid(choice: OrderChoice) -> str:
    """Return the table of weights that were tried for the served order; empty where there was no choice."""
    if not choice.grid:
        return f"<p>Served order: {escaped(choice.reason)}.</p>"

    def weight(value: float | None) -> str:
        return "∞ (by distance)" if value is None else f"{value:g}"

    chosen = choice.order.distance_weight if choice.order.name == "fused" else None

    def share(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.1f}"

    rows = "".join(
        f"<tr><td>{weight(row.weight)}{' ← served' if row.weight == chosen else ''}</td><td>{100 * row.map:.2f}</td>"
        f"<td>{100 * row.precision_at_1:.1f}</td><td>{share(row.known_first)}</td></tr>"
        for row in choice.grid
    )
    return (
        f"<table><caption>Validation scans by λ, %. Chosen because {escaped(choice.reason)}; 95 % bootstrap interval "
        f"of λ: {weight(choice.weight_low)} to {weight(choice.weight_high)}</caption>"
        f"<tr><th>λ</th><th>MAP</th><th>P@1</th><th>known items first</th></tr>{rows}</table>"
    )


def _cells(figures: ClassFigures) -> str:
    intervals = figures.intervals
    values = (
        (figures.map, intervals.map), (figures.map_full, intervals.map_full), (figures.precision_at_1, None),
        (figures.precision_at_5, None), (figures.precision_at_10, intervals.precision_at_10),
        (figures.recall_at_10, None), (figures.recall_at_50, None),
    )  # fmt: skip
    return "".join(
        f"<td>{100 * mean:.1f}" + (f'<br><span class="faint">{bounds(interval)}</span>' if interval else "") + "</td>"
        for mean, interval in values
    )
