"""The report of a pair of encoder and reranker: what was measured, under which protocol, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from mrcg.hashing import seed_of
from mrcg.metrics.bootstrap import Gain, Interval, intervals, paired
from mrcg.metrics.calibration import Calibration
from mrcg.metrics.ranking import DEPTH, Relevance, average_precision, precision_at, recall_at

#: Files of a report.
REPORT, TABLES, PICTURE, PAGE = "report.json", "tables.md", "retrieval.png", "report.html"
QUERIES = "queries.parquet"
CAVEAT = "Without patient ids no split is known to be free of patients seen twice."
CAVEAT_KNOWN = "The patient of every query is known."
SEED = seed_of(0, "bootstrap")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Intervals(_Frozen):
    """95 % bootstrap intervals of three means."""

    map: Interval
    map_full: Interval
    precision_at_10: Interval


class ClassFigures(_Frozen):
    """Mean figures over some queries (definitions: ``mrcg.metrics.ranking``). P@1 is also hit@1."""

    queries: int
    map: float
    map_full: float
    precision_at_1: float
    precision_at_5: float
    precision_at_10: float
    recall_at_10: float
    recall_at_50: float
    intervals: Intervals


class OrderFigures(ClassFigures):
    """Figures of one order of the hits, over all queries and per class of the query."""

    per_class: dict[str, ClassFigures]


class Gains(_Frozen):
    """Reranked less ANN order, query by query."""

    map: Gain
    map_full: Gain
    precision_at_10: Gain


class Confusion(_Frozen):
    """Class of the query against class of its first hit, as counts of queries.

    ``ann[i][j]`` and ``reranked[i][j]``: queries of ``classes[i]`` whose first hit is of ``found[j]``; None is a
    first hit without a label, or no hit at all.
    """

    classes: tuple[str, ...]
    found: tuple[str | None, ...]
    ann: tuple[tuple[int, ...], ...]
    reranked: tuple[tuple[int, ...], ...]


class Leakage(_Frozen):
    """Queries with a near-duplicate (whoever's) or their own patient in the gallery; how many patients are known."""

    near_duplicates: int
    same_patient: int
    patients_known: int


class OutOfDistribution(_Frozen):
    """Distance (squared L2) to the nearest hit above which a query is flagged, and the test queries that are.

    The threshold is a quantile of the validation queries' distances; None without any, then nothing is flagged.
    """

    threshold: float | None
    quantile: float
    flagged: int
    median_distance: float | None


class Epoch(BaseModel):
    """One row of a training's history; what else it has is left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    epoch: int
    loss: float
    validation_map: float | None = None


class Training(_Frozen):
    """History of a training; empty where nothing was trained or the history is not at hand."""

    best_epoch: int = -1
    epochs: tuple[Epoch, ...] = ()


class Report(_Frozen):
    """Content of ``report.json``.

    ``leaking_queries`` have an image of their own group in the gallery. ``masked_hits`` were of the query's own group
    or patient and left out of the lists (protocol ``dedup``).
    """

    protocol: str
    queries: int
    gallery: int
    depth: int
    ann: OrderFigures
    reranked: OrderFigures
    gain: Gains
    bootstrap: int
    confusion: Confusion
    calibration: Calibration
    out_of_distribution: OutOfDistribution
    index_recall_at_50: float
    leaking_queries: int
    leakage: Leakage
    masked_hits: int
    encoder_epochs: int
    encoder_training: Training = Training()
    reranker_training: Training = Training()
    caveat: str = CAVEAT

    @property
    def ood_threshold(self) -> float | None:
        """The threshold that a release pins."""
        return self.out_of_distribution.threshold


@dataclass(frozen=True)
class Queries:
    """What the figures need to know of each query: class, group, relevant scans that it may find (q,)."""

    labels: Sequence[str]
    groups: Sequence[str]
    reachable_q: npt.NDArray[np.int64]


def order_figures(relevant_qn: Relevance, queries: Queries, resamples: int) -> OrderFigures:
    """Figures of ranked relevance.

    Args:
        relevant_qn: (queries, n), True where the hit has the query's class.
        queries: their classes, groups and totals.
        resamples: of the queries' groups for each interval.
    """
    columns = query_figures(relevant_qn, queries.reachable_q)
    names = np.array(queries.labels, dtype=object)
    classes = {label: _means(columns, queries, names == label, resamples) for label in sorted(set(queries.labels))}
    whole = _means(columns, queries, np.ones(len(names), dtype=bool), resamples)
    return OrderFigures(**dict(whole), per_class=classes)


def gains(before_qn: Relevance, after_qn: Relevance, queries: Queries, resamples: int) -> Gains:
    """What reranking is worth: paired bootstrap over the same queries."""
    before, after = query_figures(before_qn, queries.reachable_q), query_figures(after_qn, queries.reachable_q)
    return Gains(
        **{name: paired(before[name], after[name], queries.groups, resamples, SEED) for name in Gains.model_fields}
    )


def confusion(labels: Sequence[str], ann: Sequence[str | None], reranked: Sequence[str | None]) -> Confusion:
    """Count classes of queries against classes of their first hits, in both orders."""
    classes = tuple(sorted(set(labels)))
    named = {hit for hit in (*ann, *reranked) if hit is not None} | set(classes)
    found: tuple[str | None, ...] = (*sorted(named), *((None,) if None in (*ann, *reranked) else ()))

    def count(first: Sequence[str | None]) -> tuple[tuple[int, ...], ...]:
        table = np.zeros((len(classes), len(found)), dtype=np.int64)
        for label, hit in zip(labels, first, strict=True):
            table[classes.index(label), found.index(hit)] += 1
        return tuple(tuple(row) for row in table.tolist())

    return Confusion(classes=classes, found=found, ann=count(ann), reranked=count(reranked))


def query_figures(relevant_qn: Relevance, reachable_q: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.float64]]:
    """Every figure of each query (q,), by its name in ``ClassFigures``.

    Args:
        relevant_qn: (queries, n) ranked relevance.
        reachable_q: (queries,) relevant scans of the gallery that the query may find.
    """
    depth = min(DEPTH, relevant_qn.shape[1])
    return {
        "map": average_precision(relevant_qn[:, :DEPTH]),
        "map_full": average_precision(relevant_qn[:, :DEPTH], np.minimum(depth, reachable_q)),
        "precision_at_1": precision_at(relevant_qn, 1),
        "precision_at_5": precision_at(relevant_qn, 5),
        "precision_at_10": precision_at(relevant_qn, 10),
        "recall_at_10": recall_at(relevant_qn, 10, reachable_q),
        "recall_at_50": recall_at(relevant_qn, 50, reachable_q),
    }


def _means(
    columns: dict[str, npt.NDArray[np.float64]], queries: Queries, which: npt.NDArray[np.bool_], resamples: int
) -> ClassFigures:
    count = int(which.sum())
    names = list(Intervals.model_fields)
    values_qm = np.stack([columns[name][which] for name in names], axis=1)
    groups = [group for group, one in zip(queries.groups, which.tolist(), strict=True) if one]
    bounds = intervals(values_qm, groups, resamples, SEED)
    return ClassFigures(
        queries=count,
        intervals=Intervals(**dict(zip(names, bounds, strict=True))),
        **{name: float(values[which].mean()) if count else 0.0 for name, values in columns.items()},
    )
