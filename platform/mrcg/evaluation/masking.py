"""Who a query must not be credited for finding: itself in another shape (DESIGN §3, protocol ``dedup``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrcg.reranker.graph_table import GraphTable

Codes = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Owners:
    """Class, group and patient of each scan of a corpus; class and patient None where they are not known."""

    labels: Sequence[str | None]
    groups: Sequence[str]
    patients: Sequence[str | None]


def masks_own(protocol: str) -> bool:
    """Whether hits of the query's own group or patient leave the lists."""
    return protocol == "dedup"


def without_own(graphs: GraphTable, owners: Owners) -> tuple[GraphTable, int]:
    """Neighbour lists without hits of the query's own group or patient, and how many those were.

    They leave the list and what is behind them moves up: such a hit is neither right nor wrong. Freed
    places become pads (row -1, distance infinite). An unknown patient is nobody's own.
    """
    group, patient = _codes(owners.groups), _codes(owners.patients)
    rows_qn, queries_q1 = graphs.neighbours_qn, graphs.queries[:, None]
    own = (group[rows_qn] == group[queries_q1]) | (
        (patient[rows_qn] == patient[queries_q1]) & (patient[queries_q1] >= 0)
    )
    own &= rows_qn >= 0
    order = np.argsort(own, axis=1, kind="stable")
    table = GraphTable(
        graphs.queries,
        np.take_along_axis(np.where(own, -1, rows_qn), order, 1),
        np.take_along_axis(np.where(own, np.float32(np.inf), graphs.distances_qn), order, 1),
        np.take_along_axis(graphs.relevant_qn & ~own, order, 1),
    )
    return table, int(own.sum())


def reachable(queries: Codes, gallery: Flags, owners: Owners, mask_own: bool) -> Codes:
    """(q,) scans of each query's class in the gallery; with ``mask_own`` without its own group and patient."""
    rows = np.flatnonzero(gallery).tolist()
    labels, groups, patients = owners.labels, owners.groups, owners.patients
    of_class = Counter(labels[r] for r in rows)
    by_group = Counter((labels[r], groups[r]) for r in rows)
    by_patient = Counter((labels[r], patients[r]) for r in rows if patients[r] is not None)
    by_both = Counter((labels[r], groups[r], patients[r]) for r in rows if patients[r] is not None)
    found = []
    for q in queries.tolist():
        count = of_class[labels[q]] if labels[q] is not None else 0
        if mask_own and count:
            own = by_group[labels[q], groups[q]]
            if patients[q] is not None:
                own += by_patient[labels[q], patients[q]] - by_both[labels[q], groups[q], patients[q]]
            count -= own
        found.append(count)
    return np.array(found, dtype=np.int64)


def shared_with(queries: Flags, gallery: Flags, names: Sequence[str | None]) -> int:
    """How many query scans have a name (group, cluster, patient) that a gallery scan has too; None is no name."""
    codes = _codes(names)
    known = codes >= 0
    return int(np.isin(codes[queries & known], codes[gallery & known]).sum())


def _codes(names: Sequence[str | None]) -> Codes:
    """Integers that are equal where names are; -1 for None."""
    known = {name: code for code, name in enumerate(dict.fromkeys(name for name in names if name is not None))}
    return np.array([-1 if name is None else known[name] for name in names], dtype=np.int64)
