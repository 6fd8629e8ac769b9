"""How alike a query and its hits are, where plane and lesion are known (docs/method.md#graded-likeness)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mrcg.arrays import Codes, Mask, RowNumbers
from mrcg.evaluation.masking import OwnScans
from mrcg.hashing import draw
from mrcg.metrics.bootstrap import interval, paired
from mrcg.metrics.likeness import HITS, GradedLikeness, Grades, Ndcg, ndcg
from mrcg.metrics.report import SEED
from mrcg.reranker.neighbours import codes_of
from mrcg.storage import schemas

#: Lesions are alike in place if their centres are at most so far apart, in fractions of the slice.
PLACE = 0.1
#: Lesions are alike in size if the larger area is at most so many times the smaller one.
SIZE = 1.5
#: Lesions are alike in contrast if it differs by at most so much, in fractions of the grey range.
CONTRAST = 0.1
#: Queries that are graded; each is compared with the whole gallery.
MAX_QUERIES = 1000

Facts = npt.NDArray[np.float64]


class Likeness:
    """Grades pairs of scans: 0 for another class, else 1, and 1 more for each of plane, place, size and contrast.

    A fact that one of the two scans lacks is not alike.

    Args:
        scans: table of ``schemas.SCANS``.
    """

    def __init__(self, scans: pa.Table) -> None:
        self._label = codes_of(scans["label"].to_pylist())
        self._plane = codes_of(scans["plane"].to_pylist())
        columns = [scans[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in schemas.LESION]
        self._y, self._x, area, self._contrast = columns
        self._log_area = np.log(area, out=np.full_like(area, np.nan), where=area > 0)

    def known(self, rows: RowNumbers) -> Mask:
        """Return whether the class and something of the lesion are known of each scan."""
        facts = np.stack([self._y * self._x, self._log_area, self._contrast])
        known: Mask = (self._label[rows] >= 0) & np.isfinite(facts[:, rows]).any(axis=0)
        return known

    def grades(self, query: int, rows: RowNumbers) -> Grades:
        """Return the (n,) grades of some scans for a query: 0 to 5."""
        # Comparisons with NaN, an unknown fact, are False.
        alike = (
            _same(self._plane, query, rows),
            np.hypot(self._y[rows] - self._y[query], self._x[rows] - self._x[query]) <= PLACE,
            np.abs(self._log_area[rows] - self._log_area[query]) <= np.log(SIZE),
            np.abs(self._contrast[rows] - self._contrast[query]) <= CONTRAST,
        )
        return np.where(_same(self._label, query, rows), 1 + np.sum(alike, axis=0), 0)


def _same(codes: Codes, query: int, rows: RowNumbers) -> Mask:
    same: Mask = (codes[rows] == codes[query]) & (codes[query] >= 0)
    return same


def graded_likeness(
    scans: pa.Table,
    queries: RowNumbers,
    gallery: Mask,
    own: OwnScans | None,
    hits: Mapping[str, RowNumbers],
    groups: Sequence[str],
    resamples: int,
) -> GradedLikeness | None:
    """Return the nDCG@10 of each order and of the same hits in random order.

    Queries count whose lesion is known; of more than ``MAX_QUERIES``, as many are drawn by id. One that has no scan of
    its class in the gallery counts as 0.

    Args:
        scans: table of ``schemas.SCANS``.
        queries: (q,) rows of the queries.
        gallery: (rows,) whether each scan can be found.
        own: tells the scans of a query's own group or patient, which it may not find; None if it may.
        hits: (q, n) rows of the hits in each order (ann, score, served), best first; -1 for pads.
        groups: group of each query.
        resamples: of the groups, for the intervals.

    Returns:
        The figures; None if no query's lesion is known.
    """
    likeness, ids = Likeness(scans), scans["image_id"]
    known = np.flatnonzero(likeness.known(queries)).tolist()
    graded = sorted(sorted(known, key=lambda q: draw(0, "graded", ids[int(queries[q])].as_py()))[:MAX_QUERIES])
    if not graded:
        return None
    rows, lists = np.flatnonzero(gallery), {**hits, "chance": _shuffled(hits["ann"])}
    ideal, found = [], dict[str, list[Grades]]()
    for q in graded:
        query = int(queries[q])
        allowed = rows if own is None else rows[~own.of(query, rows)]
        ideal.append(_padded(np.sort(likeness.grades(query, allowed))[::-1]))
        for order, rows_qn in lists.items():
            first = rows_qn[q, :HITS]
            found.setdefault(order, []).append(_padded(np.where(first >= 0, likeness.grades(query, first), 0)))
    each = {order: ndcg(np.stack(grades), np.stack(ideal)) for order, grades in found.items()}
    graded_groups = [groups[q] for q in graded]
    figures = {
        order: Ndcg(mean=float(values.mean()), interval=interval(values, graded_groups, resamples, SEED))
        for order, values in each.items()
    }
    gain = paired(each["ann"], each["served"], graded_groups, resamples, SEED)
    return GradedLikeness(known=len(known), queries=len(graded), served_gain=gain, **figures)


def _shuffled(hits_qn: RowNumbers) -> RowNumbers:
    """Return the hits of each query in random order; pads stay at the end."""
    keys = np.random.default_rng(SEED).random(hits_qn.shape)
    keys[hits_qn < 0] = np.inf
    return np.take_along_axis(hits_qn, np.argsort(keys, axis=1, kind="stable"), 1)


def _padded(grades: Grades) -> Grades:
    """Return the first ``HITS`` grades, with zeros where there are fewer."""
    return np.pad(grades[:HITS], (0, max(0, HITS - len(grades))))
