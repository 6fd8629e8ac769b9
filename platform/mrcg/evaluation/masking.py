"""Masking of hits that do not count under protocol ``dedup``: those of the query's own group or patient.

The protocols are described in docs/method.md#protocols.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mrcg.arrays import Codes, Mask, RowNumbers
from mrcg.reranker.graph_table import GraphTable
from mrcg.reranker.neighbours import codes_of


@dataclass(frozen=True)
class ScanAttributes:
    """Label, group and patient of each scan of a corpus; an unknown label or patient is None."""

    labels: Sequence[str | None]
    groups: Sequence[str]
    patients: Sequence[str | None]


def masks_own(protocol: str) -> bool:
    """Return whether a protocol removes hits of the query's own group or patient from the lists."""
    return protocol == "dedup"


class OwnScans:
    """Tells which scans are of the same group or patient as a query. Two unknown patients are not the same patient."""

    def __init__(self, scans: ScanAttributes) -> None:
        self._group, self._patient = codes_of(scans.groups), codes_of(scans.patients)

    def of(self, query: RowNumbers | int, rows: RowNumbers) -> Mask:
        """Return whether each of some rows is the query's own; ``query`` is broadcast to the shape of ``rows``."""
        group, patient = self._group, self._patient
        own: Mask = (group[rows] == group[query]) | ((patient[rows] == patient[query]) & (patient[query] >= 0))
        return own


def mask_own_hits(graphs: GraphTable, scans: ScanAttributes) -> tuple[GraphTable, int]:
    """Remove hits of the query's own group or patient; return the lists and the number of removed hits.

    Such a hit is neither right nor wrong: it is removed, and the hits behind it move up. The list is padded at the end
    (row -1, infinite distance).
    """
    rows_qn = graphs.neighbours_qn
    own = OwnScans(scans).of(graphs.queries[:, None], rows_qn) & (rows_qn >= 0)
    order = np.argsort(own, axis=1, kind="stable")
    table = GraphTable(
        graphs.queries,
        np.take_along_axis(np.where(own, -1, rows_qn), order, 1),
        np.take_along_axis(np.where(own, np.float32(np.inf), graphs.distances_qn), order, 1),
        np.take_along_axis(graphs.relevant_qn & ~own, order, 1),
    )
    return table, int(own.sum())


def reachable(queries: Codes, gallery: Mask, scans: ScanAttributes, mask_own: bool) -> Codes:
    """Return how many gallery scans of its own class each query may find, (q,); 0 for a query without a label.

    Args:
        queries: (q,) rows of the corpus.
        gallery: (n,) whether each row of the corpus is in the gallery.
        scans: attributes of each row of the corpus.
        mask_own: leave out scans of the query's own group or patient.
    """
    rows = np.flatnonzero(gallery).tolist()
    labels, groups, patients = scans.labels, scans.groups, scans.patients
    of_class = Counter(labels[r] for r in rows)
    by_group = Counter((labels[r], groups[r]) for r in rows)
    by_patient = Counter((labels[r], patients[r]) for r in rows if patients[r] is not None)
    by_both = Counter((labels[r], groups[r], patients[r]) for r in rows if patients[r] is not None)
    counts = []
    for q in queries.tolist():
        count = of_class[labels[q]] if labels[q] is not None else 0
        if mask_own and count:
            own = by_group[labels[q], groups[q]]
            if patients[q] is not None:
                own += by_patient[labels[q], patients[q]] - by_both[labels[q], groups[q], patients[q]]
            count -= own
        counts.append(count)
    return np.array(counts, dtype=np.int64)


def count_shared(queries: Mask, gallery: Mask, names: Sequence[str | None]) -> int:
    """Count the query scans that share a name (group, cluster, patient) with a gallery scan; None is no name."""
    codes = codes_of(names)
    known = codes >= 0
    return int(np.isin(codes[queries & known], codes[gallery & known]).sum())
