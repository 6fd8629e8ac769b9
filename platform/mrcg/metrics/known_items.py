"""Known items: whether a gallery scan, unchanged or slightly changed, finds itself (docs/method.md#known-items).

MAP over classes cannot see it, because any scan of the right class will do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mrcg.arrays import Mask
from mrcg.frozen import Frozen
from mrcg.metrics.bootstrap import Gain, Interval, intervals, paired

#: Name of the form in which a scan is as it is.
UNCHANGED = "unchanged"
#: Orders of the hits: by distance, by score, and the one that a release serves.
ORDERS = ("ann", "score", "served")

#: (s, c) rank of s scans in c forms, from 1; infinity where the scan is not among the hits.
Ranks = npt.NDArray[np.float64]


class Recovery(Frozen):
    """How well scans find themselves: shares first and among the first ten, and the mean reciprocal rank."""

    first: float
    in_10: float
    reciprocal_rank: float
    first_interval: Interval
    in_10_interval: Interval
    reciprocal_rank_interval: Interval


class Recoveries(Frozen):
    """The same for each order, over a number of scans."""

    items: int
    ann: Recovery
    score: Recovery
    served: Recovery


class FirstShares(Frozen):
    """Shares of queries that find what is asked for, by order."""

    ann: float
    score: float
    served: float


class NeighbouringSlices(Frozen):
    """Queries with a slice directly beside them in the gallery, and shares that find one first or in ten hits."""

    queries: int
    first: FirstShares
    in_10: FirstShares


class KnownItems(Frozen):
    """Content of ``report.json`` on known items. ``changed`` figures are means over all changes.

    ``fitted`` are scans that the encoder was fitted on, ``unseen`` those that it was not; None where there are none.
    """

    unchanged: Recoveries
    changed: Recoveries
    changed_fitted: Recoveries | None
    changed_unseen: Recoveries | None
    by_change: dict[str, FirstShares]


@dataclass(frozen=True)
class KnownRanks:
    """At which rank each of s gallery scans finds itself.

    Attributes:
        image_ids, groups: of the scans.
        fitted: (s,) whether the encoder was fitted on each.
        forms: names of the c forms, the unchanged one first.
        ranks: (s, c) by order.
    """

    image_ids: Sequence[str]
    groups: Sequence[str]
    fitted: Mask
    forms: Sequence[str]
    ranks: Mapping[str, Ranks]

    def figures(self, resamples: int, seed: int) -> KnownItems:
        """Return the figures, with 95 % intervals from so many resamples of the groups."""

        def recoveries(selected: Mask, forms: slice) -> Recoveries | None:
            if not selected.any():
                return None
            groups = [group for group, chosen in zip(self.groups, selected.tolist(), strict=True) if chosen]
            by_order = {
                order: _recovery(self.ranks[order][selected, forms], groups, resamples, seed) for order in ORDERS
            }
            return Recoveries(items=int(selected.sum()), **by_order)

        everything, changed = np.ones(len(self.image_ids), dtype=bool), slice(1, None)
        unchanged_figures, changed_figures = recoveries(everything, slice(0, 1)), recoveries(everything, changed)
        assert unchanged_figures is not None
        assert changed_figures is not None
        return KnownItems(
            unchanged=unchanged_figures,
            changed=changed_figures,
            changed_fitted=recoveries(self.fitted, changed),
            changed_unseen=recoveries(~self.fitted, changed),
            by_change={
                form: FirstShares(**{order: float((self.ranks[order][:, place] == 1).mean()) for order in ORDERS})
                for place, form in enumerate(self.forms)
                if place
            },
        )

    def columns(self) -> dict[str, Any]:
        """Return the columns of ``schemas.KNOWN_ITEMS``, with a row for each scan and form."""
        count = len(self.forms)

        def each(values: Sequence[Any]) -> list[Any]:
            return [value for value in values for _ in range(count)]

        columns: dict[str, Any] = {
            "image_id": each(self.image_ids),
            "group_id": each(self.groups),
            "fitted": each(self.fitted.tolist()),
            "form": list(self.forms) * len(self.image_ids),
        }
        for order in ORDERS:
            flat = self.ranks[order].reshape(-1)
            columns[f"{order}_rank"] = pa.array(
                np.where(np.isfinite(flat), flat, 0).astype(np.int32), mask=~np.isfinite(flat)
            )
        return columns


def _recovery(ranks_sc: Ranks, groups: Sequence[str], resamples: int, seed: int) -> Recovery:
    columns = (ranks_sc == 1, ranks_sc <= 10, 1 / ranks_sc)
    values_sm = np.stack([column.astype(np.float64).mean(axis=1) for column in columns], axis=1)
    first, in_10, reciprocal_rank = values_sm.mean(axis=0).tolist()
    bounds = intervals(values_sm, groups, resamples, seed)
    return Recovery(
        first=first,
        in_10=in_10,
        reciprocal_rank=reciprocal_rank,
        first_interval=bounds[0],
        in_10_interval=bounds[1],
        reciprocal_rank_interval=bounds[2],
    )


def change_between(before: pa.Table, after: pa.Table, resamples: int, seed: int) -> Gain | None:
    """Return the change of the share of changed scans that find themselves first in the served order.

    Args:
        before: table of ``schemas.KNOWN_ITEMS`` of a report.
        after: that of another report.
        resamples: of the groups, for the interval.
        seed: equal seeds give equal intervals.

    Returns:
        The change over the scans that both reports have, paired by scan; None if there are none.
    """
    shares_before, shares_after = _shares_first(before), _shares_first(after)
    common = sorted(shares_before.keys() & shares_after.keys())
    if not common:
        return None
    old, new = (np.array([shares[name][1] for name in common]) for shares in (shares_before, shares_after))
    return paired(old, new, [shares_after[name][0] for name in common], resamples, seed)


def _shares_first(table: pa.Table) -> dict[str, tuple[str, float]]:
    """Return the group of each scan, and the share of its changed forms that find it first in the served order."""
    firsts: dict[str, tuple[str, list[bool]]] = {}
    for row in table.to_pylist():
        if row["form"] != UNCHANGED:
            firsts.setdefault(row["image_id"], (row["group_id"], []))[1].append(row["served_rank"] == 1)
    return {name: (group, sum(found) / len(found)) for name, (group, found) in firsts.items()}
