"""The report of a pair of encoder and reranker: what was measured, under which protocol, as data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from mrcg.evaluation.metrics import DEPTH, Relevance, average_precision, precision_at

#: Files of a report.
REPORT, TABLES, PICTURE = "report.json", "tables.md", "retrieval.png"
CAVEAT = "Without patient ids no split is known to be free of patients seen twice."


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassFigures(_Frozen):
    """Mean figures over some queries (definitions: ``mrcg.evaluation.metrics``)."""

    queries: int
    map: float
    map_full: float
    precision_at_5: float
    precision_at_10: float


class OrderFigures(ClassFigures):
    """Figures of one order of the hits, over all queries and per class of the query."""

    per_class: dict[str, ClassFigures]


class Report(_Frozen):
    """Content of ``report.json``."""

    protocol: str
    queries: int
    gallery: int
    depth: int
    ann: OrderFigures
    reranked: OrderFigures
    index_recall_at_50: float
    leaking_queries: int
    ood_threshold: float | None
    encoder_epochs: int
    caveat: str = CAVEAT


def order_figures(relevant_qn: Relevance, labels: Sequence[str], gallery: dict[str, int]) -> OrderFigures:
    """Figures of ranked relevance.

    Args:
        relevant_qn: (queries, n), True where the hit has the query's class.
        labels: class of each query.
        gallery: images of each class that a query can find.
    """
    depth = min(DEPTH, relevant_qn.shape[1])
    total = np.array([min(depth, gallery.get(label, 0)) for label in labels], dtype=np.int64)
    columns = {
        "map": average_precision(relevant_qn[:, :DEPTH]),
        "map_full": average_precision(relevant_qn[:, :DEPTH], total),
        "precision_at_5": precision_at(relevant_qn, 5),
        "precision_at_10": precision_at(relevant_qn, 10),
    }
    names = np.array(labels, dtype=object)
    classes = {label: _means(columns, names == label) for label in sorted(set(labels))}
    return OrderFigures(**_means(columns, np.ones(len(labels), dtype=bool)).model_dump(), per_class=classes)


def _means(columns: dict[str, npt.NDArray[np.float64]], which: npt.NDArray[np.bool_]) -> ClassFigures:
    count = int(which.sum())
    return ClassFigures(queries=count, **{k: float(v[which].mean()) if count else 0.0 for k, v in columns.items()})


def tables_markdown(report: Report) -> str:
    """The report as Markdown tables, percentages with one decimal."""
    lines = [
        f"Protocol `{report.protocol}`: {report.queries} queries, gallery of {report.gallery}; "
        f"{report.leaking_queries} queries have a near-duplicate in the gallery. {report.caveat}",
        "",
        "| order | MAP | MAP (full) | P@5 | P@10 |",
        "| --- | ---: | ---: | ---: | ---: |",
        _row("ANN", report.ann),
        _row("reranked", report.reranked),
        "",
        "| class | queries | MAP, ANN | MAP, reranked | P@10, ANN | P@10, reranked |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for label, ann in report.ann.per_class.items():
        after = report.reranked.per_class[label]
        cells = (ann.map, after.map, ann.precision_at_10, after.precision_at_10)
        lines.append(f"| {label} | {ann.queries} | " + " | ".join(f"{100 * c:.1f}" for c in cells) + " |")
    return "\n".join(lines) + "\n"


def _row(name: str, figures: ClassFigures) -> str:
    cells = (figures.map, figures.map_full, figures.precision_at_5, figures.precision_at_10)
    return f"| {name} | " + " | ".join(f"{100 * c:.1f}" for c in cells) + " |"
