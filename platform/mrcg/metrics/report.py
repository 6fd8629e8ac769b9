"""The schema of a report: the figures of an encoder and a reranker under one protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from mrcg.frozen import Frozen
from mrcg.hashing import seed_of
from mrcg.metrics.bootstrap import Gain, Interval, intervals, paired
from mrcg.metrics.calibration import Calibration
from mrcg.metrics.known_items import KnownItems, NeighbouringSlices
from mrcg.metrics.likeness import GradedLikeness
from mrcg.metrics.order import OrderChoice
from mrcg.metrics.ranking import DEPTH, Relevance, average_precision, precision_at, recall_at

#: Files of a report.
REPORT, TABLES, PICTURE, PAGE = "report.json", "tables.md", "retrieval.png", "report.html"
QUERIES, KNOWN = "queries.parquet", "known_items.parquet"
CAVEAT = "Not every query has a patient id, so scans of one patient may be in both the gallery and the queries."
CAVEAT_KNOWN = "The patient of every query is known."
SEED = seed_of(0, "bootstrap")


class Intervals(Frozen):
    """The 95 % bootstrap intervals of three means."""

    map: Interval
    map_full: Interval
    precision_at_10: Interval


class ClassFigures(Frozen):
    """Mean figures over a set of queries, as defined in ``mrcg.metrics.ranking``. P@1 equals hit@1."""

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
    """Figures of one order of the hits (ANN, by score, served), over all queries and per class of the query."""

    per_class: dict[str, ClassFigures]


class Gains(Frozen):
    """Gains of another order over the ANN order, paired by query."""

    map: Gain
    map_full: Gain
    precision_at_10: Gain


class Confusion(Frozen):
    """Numbers of queries by the class of the query and the class of its first hit.

    ``ann[i][j]`` and ``reranked[i][j]`` count queries of ``classes[i]`` whose first hit has class ``found[j]``. None
    stands for a first hit without a label, or for no hit.
    """

    classes: tuple[str, ...]
    found: tuple[str | None, ...]
    ann: tuple[tuple[int, ...], ...]
    reranked: tuple[tuple[int, ...], ...]


class Leakage(Frozen):
    """Numbers of queries with a near-duplicate (of any patient) or their own patient in the gallery.

    ``patients_known`` is the number of queries whose patient is known.
    """

    near_duplicates: int
    same_patient: int
    patients_known: int


class OutOfDistribution(Frozen):
    """Distances to the nearest hit (squared L2), and the number of test queries above the threshold.

    The threshold is a quantile of the validation queries' distances. It is None without validation queries; then no
    query is flagged.
    """

    threshold: float | None
    quantile: float
    flagged: int
    median_distance: float | None


class Epoch(BaseModel):
    """One row of a training history; other columns are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    epoch: int
    loss: float
    validation_map: float | None = None


class Training(Frozen):
    """History of a training; empty if nothing was trained or the history is not available."""

    best_epoch: int = -1
    epochs: tuple[Epoch, ...] = ()


class Report(Frozen):
    """Content of ``report.json``.

    ``reranked`` and ``gain`` are of the order by score alone; ``served`` and ``served_gain`` of the order that a
    release serves, None in reports of earlier versions of MRCG, which served the order by score. ``typical_distance``
    is the median distance of a validation query's hits. ``leaking_queries`` is the number of queries with an image of
    their own group in the gallery. ``masked_hits`` is the number of hits of the query's own group or patient that were
    removed from the lists (protocol ``dedup``). ``neighbouring_slices`` is None where no query has one in the gallery,
    ``graded_likeness`` where no query's lesion is known.
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
    order: OrderChoice = OrderChoice()
    served: OrderFigures | None = None
    served_gain: Gains | None = None
    known_items: KnownItems | None = None
    neighbouring_slices: NeighbouringSlices | None = None
    graded_likeness: GradedLikeness | None = None
    typical_distance: float | None = None

    @property
    def served_figures(self) -> OrderFigures:
        """The figures of the order that a release serves."""
        return self.reranked if self.served is None else self.served

    @property
    def ood_threshold(self) -> float | None:
        """The out-of-distribution threshold that a release records."""
        return self.out_of_distribution.threshold


@dataclass(frozen=True)
class Queries:
    """Class, group and number of relevant gallery scans (q,) of each query."""

    labels: Sequence[str]
    groups: Sequence[str]
    reachable_q: npt.NDArray[np.int64]


def order_figures(relevant_qn: Relevance, queries: Queries, resamples: int) -> OrderFigures:
    """Return the figures of ranked relevance.

    Args:
        relevant_qn: (queries, n), True where the hit has the query's class.
        queries: class, group and number of reachable relevant scans of each query.
        resamples: number of resamples of the query groups per interval.
    """
    columns = query_figures(relevant_qn, queries.reachable_q)
    names = np.array(queries.labels, dtype=object)
    classes = {label: _means(columns, queries, names == label, resamples) for label in sorted(set(queries.labels))}
    overall = _means(columns, queries, np.ones(len(names), dtype=bool), resamples)
    return OrderFigures(**dict(overall), per_class=classes)


def gains(before_qn: Relevance, after_qn: Relevance, queries: Queries, resamples: int) -> Gains:
    """Return the gains from ``before_qn`` to ``after_qn`` by paired bootstrap over the same queries."""
    before, after = query_figures(before_qn, queries.reachable_q), query_figures(after_qn, queries.reachable_q)
    return Gains(
        **{name: paired(before[name], after[name], queries.groups, resamples, SEED) for name in Gains.model_fields}
    )


def confusion(labels: Sequence[str], ann: Sequence[str | None], reranked: Sequence[str | None]) -> Confusion:
    """Count queries by their class and the class of their first hit, in both orders.

    Args:
        labels: class of each query.
        ann: class of its first hit in the ANN order; None for a hit without a label, or no hit.
        reranked: the same in the reranked order.
    """
    classes = tuple(sorted(set(labels)))
    hit_classes = {hit for hit in (*ann, *reranked) if hit is not None} | set(classes)
    found: tuple[str | None, ...] = (*sorted(hit_classes), *((None,) if None in (*ann, *reranked) else ()))

    def count(first_hits: Sequence[str | None]) -> tuple[tuple[int, ...], ...]:
        table = np.zeros((len(classes), len(found)), dtype=np.int64)
        for label, hit in zip(labels, first_hits, strict=True):
            table[classes.index(label), found.index(hit)] += 1
        return tuple(tuple(row) for row in table.tolist())

    return Confusion(classes=classes, found=found, ann=count(ann), reranked=count(reranked))


def query_figures(relevant_qn: Relevance, reachable_q: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.float64]]:
    """Return the figures of each query, (q,) each, by their names in ``ClassFigures``.

    Args:
        relevant_qn: (queries, n) ranked relevance.
        reachable_q: (queries,) number of relevant scans in the gallery that the query may find.
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
    columns: dict[str, npt.NDArray[np.float64]], queries: Queries, selected: npt.NDArray[np.bool_], resamples: int
) -> ClassFigures:
    count = int(selected.sum())
    names = list(Intervals.model_fields)
    values_qm = np.stack([columns[name][selected] for name in names], axis=1)
    groups = [group for group, chosen in zip(queries.groups, selected.tolist(), strict=True) if chosen]
    bounds = intervals(values_qm, groups, resamples, SEED)
    return ClassFigures(
        queries=count,
        intervals=Intervals(**dict(zip(names, bounds, strict=True))),
        **{name: float(values[selected].mean()) if count else 0.0 for name, values in columns.items()},
    )
