"""Render the tables of a report as Markdown."""

from __future__ import annotations

from mrcg.metrics.bootstrap import Gain, Interval
from mrcg.metrics.report import ClassFigures, Report


def tables_markdown(report: Report) -> str:
    """Return the report as Markdown tables: percentages with one decimal, 95 % intervals in brackets."""
    lines = [
        f"Protocol `{report.protocol}`: {report.queries} queries, gallery of {report.gallery}; "
        f"{report.leaking_queries} queries have a near-duplicate in the gallery. {report.caveat}",
        "",
        "| order | MAP | MAP (full) | P@1 | P@5 | P@10 | recall@10 | recall@50 |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        _row("ANN", report.ann),
        _row("reranked", report.reranked),
        "",
        f"Reranking changes MAP by {_gain(report.gain.map)}, MAP (full) by {_gain(report.gain.map_full)} and P@10 by "
        f"{_gain(report.gain.precision_at_10)} points (95 % intervals, {report.bootstrap} paired resamples of groups).",
        "",
        "| class | queries | MAP, ANN | MAP, reranked | P@10, ANN | P@10, reranked |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for label, ann in report.ann.per_class.items():
        after = report.reranked.per_class[label]
        cells = (
            _with_interval(ann.map, ann.intervals.map),
            _with_interval(after.map, after.intervals.map),
            _with_interval(ann.precision_at_10, ann.intervals.precision_at_10),
            _with_interval(after.precision_at_10, after.intervals.precision_at_10),
        )
        lines.append(f"| {_cell_text(label)} | {ann.queries} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


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
