"""Render the tables of a report as Markdown."""

from __future__ import annotations

from mrcg.metrics.bootstrap import Gain, Interval
from mrcg.metrics.report import ClassFigures, Gains, Report


def tables_markdown(report: Report) -> str:
    """Return the report as Markdown tables: percentages with one decimal, 95 % intervals in brackets."""
    served = report.served_figures
    also_served = "" if report.served_gain is None else f"; the served order by {_gains(report.served_gain)}"
    lines = [
        f"Protocol `{report.protocol}`: {report.queries} queries, gallery of {report.gallery}; "
        f"{report.leaking_queries} queries have a near-duplicate in the gallery. {report.caveat}",
        "",
        "| order | MAP | MAP (full) | P@1 | P@5 | P@10 | recall@10 | recall@50 |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        _row("by distance (ANN)", report.ann),
        _row("by score", report.reranked),
        _row("served", served),
        "",
        f"The order by score changes MAP by {_gains(report.gain)} points (95 % intervals, {report.bootstrap} paired "
        f"resamples of groups){also_served}.",
        "",
        *_known_items(report),
        *_graded_likeness(report),
        "| class | queries | MAP, ANN | MAP, served | P@10, ANN | P@10, served |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for label, ann in report.ann.per_class.items():
        after = served.per_class[label]
        cells = (
            _with_interval(ann.map, ann.intervals.map),
            _with_interval(after.map, after.intervals.map),
            _with_interval(ann.precision_at_10, ann.intervals.precision_at_10),
            _with_interval(after.precision_at_10, after.intervals.precision_at_10),
        )
        lines.append(f"| {_cell_text(label)} | {ann.queries} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _known_items(report: Report) -> list[str]:
    known = report.known_items
    if known is None:
        return []
    lines = [
        f"Known items: {known.unchanged.items} gallery scans searched for by their own pixels, share first, %.",
        "",
        "| form | by distance | by score | served |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, figures in (("unchanged", known.unchanged), ("changed, mean", known.changed)):
        shares = (_with_interval(r.first, r.first_interval) for r in (figures.ann, figures.score, figures.served))
        lines.append(f"| {name} | {' | '.join(shares)} |")
    for change, first in known.by_change.items():
        lines.append(f"| {change} | {' | '.join(f'{100 * s:.1f}' for s in (first.ann, first.score, first.served))} |")
    return [*lines, ""]


def _graded_likeness(report: Report) -> list[str]:
    likeness = report.graded_likeness
    if likeness is None:
        return []
    orders = (
        ("by distance", likeness.ann), ("by score", likeness.score), ("served", likeness.served),
        ("in random order", likeness.chance),
    )  # fmt: skip
    cells = ", ".join(f"{name} {_with_interval(figure.mean, figure.interval)}" for name, figure in orders)
    graded = f"{likeness.queries} of {likeness.known} queries with a known lesion"
    return [f"Graded likeness of {graded}, nDCG@10, %: {cells}.", ""]


def _gains(gains: Gains) -> str:
    return f"{_gain(gains.map)}, MAP (full) by {_gain(gains.map_full)} and P@10 by {_gain(gains.precision_at_10)}"


def _row(name: str, figures: ClassFigures) -> str:
    cells = (
        _with_interval(figures.map, figures.intervals.map),
        _with_interval(figures.map_full, figures.intervals.map_full),
        f"{100 * figures.precision_at_1:.1f}",
        f"{100 * figures.precision_at_5:.1f}",
        _with_interval(figures.precision_at_10, figures.intervals.precision_at_10),
        f"{100 * figures.recall_at_10:.1f}",
        f"{100 * figures.recall_at_50:.1f}",
    )
    return f"| {name} | {' | '.join(cells)} |"


def _with_interval(mean: float, bounds: Interval) -> str:
    return f"{100 * mean:.1f} [{100 * bounds.low:.1f}, {100 * bounds.high:.1f}]"


def _gain(gain: Gain) -> str:
    return f"{100 * gain.mean:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"


def _cell_text(label: str) -> str:
    """Return a class name for a table cell, where a pipe or a line break would end the cell."""
    return " ".join(label.replace("|", "\\|").split())
