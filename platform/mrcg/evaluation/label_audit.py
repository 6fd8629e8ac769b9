"""Find scans whose label contradicts their neighbours (docs/labels.md).

Confident learning (Northcutt et al., Confident Learning: Estimating Uncertainty in Dataset Labels, 2021) compares the
label of each scan with class probabilities of a model that saw neither the scan nor its group. Here the probabilities
are the classes of the nearest labelled scans of other groups. Nothing is relabelled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mrcg.arrays import Codes, Mask, RowNumbers, Vectors
from mrcg.corpus.embeddings import embeddings_of
from mrcg.corpus.reader import Corpus
from mrcg.corpus.splits import Fold, Split
from mrcg.encoder.appearance import facts_in
from mrcg.errors import SourceError, require
from mrcg.frozen import Frozen
from mrcg.index.distances import Neighbours, distances_to, exact_search
from mrcg.metrics.bootstrap import Interval, interval
from mrcg.metrics.report import SEED
from mrcg.reranker.neighbours import codes_of, largest_group, without_own_group
from mrcg.storage.store import Artefact

#: Nearest labelled scans whose classes give the probabilities of a scan.
NEIGHBOURS = 10
#: A class is left out if a scan of it has fewer scans of its class outside its own group: they could not be the most
#: frequent ones among its neighbours.
MIN_CLASS = NEIGHBOURS // 2
#: Neighbours that are added to those that were found, spread evenly over the classes: no probability is 0.
PRIOR = 1.0
#: Nearest neighbours that a row of the audit names.
NAMED = 5

Probabilities = npt.NDArray[np.float64]


# Scores out of sample ------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoringPart:
    """The scans that one encoder scores.

    Attributes:
        fold: that the encoder was trained without; None for the released encoder.
        scored: (rows,) labelled scans of groups that it did not see.
    """

    fold: Fold | None
    scored: Mask


def scoring_parts(
    split: Split, groups: Sequence[str], labelled: Mask, folds: int, seed: int
) -> tuple[ScoringPart, ...]:
    """Assign each labelled scan to an encoder that saw neither the scan nor its group.

    The released encoder scores the scans of groups that it was not trained on. All other scans are scored by the
    encoder that leaves out the fold of their group.

    Args:
        split: of the corpus.
        groups: group of each scan.
        labelled: (rows,) scans with a label.
        folds: number of cross-fitted encoders.
        seed: of the run, which draws the folds.

    Returns:
        The part of the released encoder, then one per fold. Each labelled scan is scored in exactly one.
    """
    trained_groups = {group for group, is_fit in zip(groups, split.fit.tolist(), strict=True) if is_fit}
    seen: Mask = np.array([group in trained_groups for group in groups], dtype=bool)
    numbered = [Fold(number, folds) for number in range(folds)]
    return (
        ScoringPart(None, labelled & ~seen),
        *(ScoringPart(fold, labelled & seen & fold.members(groups, seed)) for fold in numbered),
    )


def frequent_classes(labels: Codes, groups: Codes, count: int) -> Mask:
    """Return the (count,) mask of the classes whose scans all have ``MIN_CLASS`` scans of their class in other groups.

    Args:
        labels: (rows,) class of each scan, -1 if it has none.
        groups: (rows,) number of the group of each scan.
        count: number of classes.

    Raises:
        SourceError: fewer than two classes are that frequent.
    """
    others = [
        len(members) - int(np.bincount(members).max()) if len(members := groups[labels == number]) else 0
        for number in range(count)
    ]
    frequent: Mask = np.array(others, dtype=np.int64) >= MIN_CLASS
    if frequent.sum() < 2:
        raise SourceError(
            f"the label audit needs two classes of which every scan has {MIN_CLASS} scans outside its own group: "
            "add labelled scans"
        )
    return frequent


def nearest_labelled(vectors_nd: Vectors, scored: Mask, labelled: Mask, groups: Codes, k: int) -> Neighbours:
    """Return the k nearest labelled scans of each scored scan, never of its own group, by exact search.

    Args:
        vectors_nd: (rows, d) embeddings of the encoder that scores.
        scored: (rows,) scans whose neighbours are searched.
        labelled: (rows,) scans that may be neighbours.
        groups: (rows,) number of the group of each scan.
        k: neighbours per scored scan.

    Returns:
        (scored, k) rows of the corpus and squared L2 distances, nearest first; -1 and inf if there are fewer.
    """
    queries, candidates = np.flatnonzero(scored), np.flatnonzero(labelled)
    x = np.ascontiguousarray(vectors_nd, dtype=np.float32)
    places = exact_search(x[queries], x[candidates], k + largest_group(groups, queries, labelled))
    rows: RowNumbers = np.where(places >= 0, candidates[places], -1) if len(candidates) else places
    return without_own_group(Neighbours(rows, distances_to(x[queries], x, rows)), queries, groups, k)


def class_probabilities(rows_qk: RowNumbers, labels: Codes, count: int) -> Probabilities:
    """Return the (q, count) shares of the classes among neighbours, smoothed by ``PRIOR``.

    Args:
        rows_qk: (q, k) rows of the neighbours, -1 where there are fewer.
        labels: (rows,) class of each scan.
        count: number of classes.
    """
    found_qk = np.where(rows_qk >= 0, labels[rows_qk], -1)
    shares_qc = np.stack([(found_qk == number).sum(axis=1) for number in range(count)], axis=1) + PRIOR / count
    probabilities: Probabilities = shares_qc / shares_qc.sum(axis=1, keepdims=True)
    return probabilities


@dataclass(frozen=True)
class LabelScores:
    """How well (n,) labels agree with class probabilities.

    Attributes:
        own: probability of the scan's own label.
        margin: ``own`` minus the probability of the best other class.
        suggested: the most probable class; the own one if no other is more probable.
        flagged: the first scans of ``order``, as many as confident learning counts to be of another class than their
            label; never a scan whose own class is the most probable.
        order: rows, worst first: by ``own``, then ``margin``, then row.
    """

    own: Probabilities
    margin: Probabilities
    suggested: Codes
    flagged: Mask
    order: RowNumbers


def score_labels(probabilities_nc: Probabilities, labels: Codes) -> LabelScores:
    """Compare labels with class probabilities by confident learning.

    Args:
        probabilities_nc: (n, c) class probabilities of models that did not see the scans.
        labels: (n,) class of each scan according to its label.

    Raises:
        MissingExtraError: cleanlab is not installed.
    """
    ranking, counting = require("cleanlab.rank"), require("cleanlab.count")
    own: Probabilities = ranking.get_label_quality_scores(labels, probabilities_nc, method="self_confidence")
    rows = np.arange(len(labels))
    others_nc = probabilities_nc.copy()
    others_nc[rows, labels] = -np.inf
    margin = own - others_nc.max(axis=1)
    suggested = np.where(margin >= 0, labels, others_nc.argmax(axis=1))
    order = np.lexsort((rows, margin, own))
    flagged: Mask = np.zeros(len(labels), dtype=bool)
    flagged[order[: int(counting.num_label_issues(labels, probabilities_nc))]] = True
    return LabelScores(own, margin, suggested, flagged & (margin < 0), order)


# Figures without the flagged queries ---------------------------------------------------------------


def matched(flagged: Mask, labels: Codes, margins: Probabilities) -> Mask:
    """Return the (n,) mask of as many unflagged scans as there are flagged ones, matched by class and margin.

    Flagged scans choose in turn, worst first, the unflagged scan of their class with the nearest margin. No scan is
    chosen twice; where a class has too few unflagged scans, fewer are chosen.

    Args:
        flagged: (n,) scans to match.
        labels: (n,) class of each scan according to its label.
        margins: (n,) margin of each scan; NaN for scans without a score, which are never chosen.
    """
    free = ~flagged & np.isfinite(margins)
    chosen: Mask = np.zeros(len(flagged), dtype=bool)
    rows = np.flatnonzero(flagged)
    for row in rows[np.argsort(margins[rows], kind="stable")].tolist():
        candidates = np.flatnonzero(free & (labels == labels[row]))
        if len(candidates):
            nearest = candidates[np.abs(margins[candidates] - margins[row]).argmin()]
            chosen[nearest], free[nearest] = True, False
    return chosen


class MapOf(Frozen):
    """The MAP of some test queries, with its 95 % interval."""

    queries: int
    map: float
    interval: Interval


class FlaggedFigures(Frozen):
    """The MAP of a report with and without flagged test queries.

    ``without_flagged`` is an upper bound: a query may be flagged because it is hard although its label is right, and
    leaving out hard queries alone raises the figure. ``without_matched`` shows how much: it leaves out unflagged
    queries of the same classes with the nearest margins, as many as there are.
    """

    report: str
    all_queries: MapOf
    without_flagged: MapOf
    without_matched: MapOf


def flagged_figures(report: str, queries: pa.Table, scans: Sequence[AuditedScan], resamples: int) -> FlaggedFigures:
    """Return the figures of a report with and without the flagged queries.

    Args:
        report: version of the report.
        queries: its table of ``schemas.QUERIES``; reports of earlier versions of MRCG have no served order, which was
            the order by score.
        scans: the audit's rows.
        resamples: bootstrap resamples of the query groups per interval.
    """
    by_id = {scan.image_id: scan for scan in scans}
    audited = [by_id.get(ident) for ident in queries["image_id"].to_pylist()]
    flagged: Mask = np.array([scan is not None and scan.flagged for scan in audited], dtype=bool)
    margins = np.array([np.nan if scan is None else scan.margin for scan in audited], dtype=np.float64)
    labels, groups = codes_of(queries["label"].to_pylist()), np.array(queries["group_id"].to_pylist(), dtype=object)
    column = "served_map" if "served_map" in queries.column_names else "reranked_map"
    values = queries[column].to_numpy().astype(np.float64)

    def map_of(kept: Mask) -> MapOf:
        bounds = interval(values[kept], groups[kept].tolist(), resamples, SEED)
        return MapOf(queries=int(kept.sum()), map=float(values[kept].mean()) if kept.any() else 0.0, interval=bounds)

    return FlaggedFigures(
        report=report,
        all_queries=map_of(np.ones(len(values), dtype=bool)),
        without_flagged=map_of(~flagged),
        without_matched=map_of(~matched(flagged, labels, margins)),
    )


# The audit -----------------------------------------------------------------------------------------


class NamedNeighbour(Frozen):
    """A labelled scan near an audited scan."""

    image_id: str
    label: str


class AuditedScan(Frozen):
    """One row of the audit.

    Attributes:
        image_id: of the scan.
        source_key: path in the source; its keyed hash with a pseudonym key.
        label: that the scan has now.
        suggested: most probable class; the own label if no other is more probable.
        probability: of the own label.
        margin: ``probability`` minus the probability of the best other class.
        group_id: of the scan.
        part: of the split: test, train, validation, held_out or none.
        flagged: probably of another class than its label, see ``LabelScores``.
        neighbours: nearest labelled scans of other groups, nearest first.
    """

    image_id: str
    source_key: str
    label: str
    suggested: str
    probability: float
    margin: float
    group_id: str
    part: str
    flagged: bool
    neighbours: tuple[NamedNeighbour, ...]


class LabelAudit(Frozen):
    """The result of a label audit.

    Attributes:
        corpus: its version.
        folds: number of cross-fitted encoders.
        scans: number of scans with a score.
        flagged: number of flagged scans.
        unlabelled: number of scans without a label.
        rare: number of scans of each class that is too rare to be scored.
        rows: scans with a score, worst first; a caller may keep the first ones only.
        figures: of a report with and without the flagged queries; None without a report.
    """

    corpus: str
    folds: int
    scans: int
    flagged: int
    unlabelled: int
    rare: Mapping[str, int]
    rows: tuple[AuditedScan, ...]
    figures: FlaggedFigures | None = None


def trained_vectors(embeddings: Artefact) -> Vectors:
    """Read the (rows, d) trained parts of stored embeddings, without the appearance parts, which know no classes."""
    return embeddings_of(embeddings)[:, : facts_in(embeddings.manifest).trained_dim]


def audit_labels(
    corpus: Corpus, split: Split, parts: Sequence[ScoringPart], vectors: Iterator[Vectors], folds: int
) -> LabelAudit:
    """Score the labels of all scans whose class is frequent enough.

    Args:
        corpus: whose labels are audited.
        split: of the corpus.
        parts: of ``scoring_parts``.
        vectors: for each part, the (rows, d) embeddings of its encoder.
        folds: number of cross-fitted encoders.

    Raises:
        SourceError: fewer than two classes have enough scans.
        MissingExtraError: cleanlab is not installed.
    """
    names, groups = corpus.classes, codes_of(corpus.groups)
    number_of = {name: number for number, name in enumerate(names)}
    labels: Codes = np.array([-1 if name is None else number_of[name] for name in corpus.labels], dtype=np.int64)
    frequent = frequent_classes(labels, groups, len(names))
    usable: Mask = (labels >= 0) & frequent[labels]
    kept = np.flatnonzero(frequent)
    narrowed: Codes = np.where(usable, (np.cumsum(frequent) - 1)[labels], -1)
    rows, probabilities, named = [], [], []
    for part, vectors_nd in zip(parts, vectors, strict=True):
        scored = part.scored & usable
        near = nearest_labelled(vectors_nd, scored, usable, groups, NEIGHBOURS).rows_qk
        rows.append(np.flatnonzero(scored))
        probabilities.append(class_probabilities(near, narrowed, len(kept)))
        named.append(near[:, :NAMED])
    row_n, near_nk = np.concatenate(rows), np.concatenate(named)
    by_row = np.argsort(row_n)
    row_n, near_nk = row_n[by_row], near_nk[by_row]
    scores = score_labels(np.concatenate(probabilities)[by_row], narrowed[row_n])
    ids, keys = corpus.scans["image_id"].to_pylist(), corpus.scans["source_key"].to_pylist()
    part_names = _part_names(split)

    def audited(place: int) -> AuditedScan:
        row = int(row_n[place])
        return AuditedScan(
            image_id=ids[row],
            source_key=keys[row],
            label=names[labels[row]],
            suggested=names[kept[scores.suggested[place]]],
            probability=float(scores.own[place]),
            margin=float(scores.margin[place]),
            group_id=corpus.groups[row],
            part=part_names[row],
            flagged=bool(scores.flagged[place]),
            neighbours=tuple(
                NamedNeighbour(image_id=ids[near], label=names[labels[near]])
                for near in near_nk[place].tolist()
                if near >= 0
            ),
        )

    return LabelAudit(
        corpus=corpus.artefact.manifest.version,
        folds=folds,
        scans=len(row_n),
        flagged=int(scores.flagged.sum()),
        unlabelled=int((labels < 0).sum()),
        rare=dict(sorted(Counter(names[number] for number in labels[(labels >= 0) & ~usable].tolist()).items())),
        rows=tuple(audited(place) for place in scores.order.tolist()),
    )


def _part_names(split: Split) -> list[str]:
    """Return the name of the part of each scan; a validation or held-out scan is in the training part, too."""
    named = np.full(len(split.train), "none", dtype=object)
    for name, mask in (
        ("train", split.train), ("test", split.test), ("held_out", split.held_out), ("validation", split.validation),
    ):  # fmt: skip
        named[mask] = name
    names: list[str] = named.tolist()
    return names
