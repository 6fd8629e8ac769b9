"""Choose λ of the fused order on validation scans, which the encoder was not fitted on (docs/method.md#order)."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrcg.metrics.bootstrap import LEVEL
from mrcg.metrics.order import BY_DISTANCE, GridRow, HitOrder, OrderChoice
from mrcg.metrics.report import SEED

#: Weights that are tried: from the order by score (0) to the ANN order (infinity).
GRID: tuple[float, ...] = (0.0, *(0.01 * 2.0**i for i in range(13)), float("inf"))
#: Share of the ANN order's known items that no gain in MAP outweighs.
MOST = 0.95
#: Share of the ANN order's known items that are kept where it is unclear whether the score gains anything.
NEARLY_ALL = 0.98
#: MAP and P@1 that may be lost there on the validation scans, of which one is often more than that.
MAP_LOSS, PRECISION_LOSS = 0.001, 0.005
#: Resamples drawn at a time.
_BLOCK = 100
#: Values that differ by less are equal.
_EQUAL = 1e-9

Values = npt.NDArray[np.float64]
Counts = npt.NDArray[np.float64]


def order_of(weight: float) -> HitOrder:
    """Return the order for a weight of the grid."""
    return HitOrder(name="fused", distance_weight=weight) if np.isfinite(weight) else BY_DISTANCE


@dataclass(frozen=True)
class GridFigures:
    """Figures of validation scans for each weight of the grid.

    Attributes:
        average_precision_vl, precision_at_1_vl: of each validation query.
        query_groups: group of each validation query.
        first_kl: share of its changed forms with which each known item finds itself first.
        item_groups: group of each known item.
    """

    average_precision_vl: Values
    precision_at_1_vl: Values
    query_groups: Sequence[str]
    first_kl: Values
    item_groups: Sequence[str]


class GainVerdict(enum.Enum):
    """What the 95 % interval of the gain in MAP of the order by score over the ANN order says."""

    CLEAR = "above 0"
    UNCLEAR = "includes 0"
    NONE = "0 or below"


def best_weight(map_l: Values, precision_at_1_l: Values, first_l: Values, gain: GainVerdict) -> int:
    """Return the position in the grid of the weight that keeps most of both orders.

    k is the share of known items first, relative to the ANN order; g the part of the gain in MAP of the order by score
    over the ANN order that is kept; both are at most 1.

    Where the gain is clear, it is the weight with k >= ``MOST`` that maximises k + g / 2; among equals the largest,
    then the next larger one with k >= ``MOST`` while P@1 is below that of the ANN order. Where the gain is unclear, g
    would be noise: then it is the smallest weight that keeps nearly all known items, MAP and P@1; infinity if known
    items were not measured. Without a gain it is infinity.

    Args:
        map_l: MAP with each weight.
        precision_at_1_l: P@1 with each weight.
        first_l: share of known items first with each weight; zeros if not measured.
        gain: verdict on all validation scans.
    """
    last, gained = len(map_l) - 1, map_l[0] - map_l[-1]
    kept_known = np.minimum(1.0, first_l / first_l[-1]) if first_l[-1] > 0 else np.ones_like(first_l)
    if gain is GainVerdict.UNCLEAR and first_l[-1] > 0:
        kept = (map_l >= map_l[-1] - MAP_LOSS) & (precision_at_1_l >= precision_at_1_l[-1] - PRECISION_LOSS)
        return int(np.flatnonzero((kept_known >= NEARLY_ALL) & kept)[0])
    if gain is not GainVerdict.CLEAR or gained <= _EQUAL:
        return last
    value_l = kept_known + np.minimum(1.0, (map_l - map_l[-1]) / gained) / 2
    value_l[kept_known < MOST] = -np.inf
    place = int(np.flatnonzero(value_l >= value_l.max() - _EQUAL)[-1])
    kept_l = (kept_known >= MOST) & (precision_at_1_l >= precision_at_1_l[-1] - _EQUAL)
    while not kept_l[place]:
        place += 1  # the last one keeps all
    return place


def choose_order(figures: GridFigures, resamples: int) -> OrderChoice:
    """Choose λ, and say how much the choice depends on which validation scans there are.

    Args:
        figures: of the validation scans.
        resamples: number of resamples of their groups for the interval of λ.
    """
    if not len(figures.average_precision_vl):
        return OrderChoice(order=order_of(GRID[-1]), reason="there are no validation scans to choose the order on")
    groups = sorted({*figures.query_groups, *figures.item_groups})
    number = {group: place for place, group in enumerate(groups)}
    sums = _GroupSums.of(figures, number)
    once = np.ones((1, len(groups)))
    map_l, precision_l, first_l = (values[0] for values in sums.means(once))
    rng, blocks = np.random.default_rng(SEED), [min(_BLOCK, resamples - start) for start in range(0, resamples, _BLOCK)]
    chances = np.full(len(groups), 1 / len(groups))
    drawn = [sums.means(rng.multinomial(len(groups), chances, block).astype(np.float64)) for block in blocks]
    drawn_means = [np.concatenate(columns) for columns in zip(*drawn, strict=True)]
    gains_r = drawn_means[0][:, 0] - drawn_means[0][:, -1]
    gain = _verdict(gains_r)
    place = best_weight(map_l, precision_l, first_l, gain)
    places = [best_weight(m, p, f, gain) for m, p, f in zip(*drawn_means, strict=True)]
    low, high = np.quantile(places, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest").astype(int).tolist()
    rows = tuple(
        GridRow(weight=_finite(weight), map=m, precision_at_1=p, known_first=f if len(figures.first_kl) else None)
        for weight, m, p, f in zip(GRID, map_l.tolist(), precision_l.tolist(), first_l.tolist(), strict=True)
    )
    return OrderChoice(
        order=order_of(GRID[place]),
        reason=_reason(gain, bool(first_l[-1] > 0)),
        grid=rows,
        weight_low=_finite(GRID[low]),
        weight_high=_finite(GRID[high]),
    )


def _verdict(gains_r: Values) -> GainVerdict:
    low, high = np.quantile(gains_r, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if high <= _EQUAL:
        return GainVerdict.NONE
    return GainVerdict.CLEAR if low > _EQUAL else GainVerdict.UNCLEAR


def _reason(gain: GainVerdict, known_items: bool) -> str:
    if gain is GainVerdict.CLEAR:
        known = "the known items of the ANN order and of " if known_items else ""
        return f"λ keeps most of {known}the gain in MAP of the order by score"
    if gain is GainVerdict.NONE:
        return "the order by score has no higher MAP than the ANN order on the validation scans"
    unclear = "the validation scans cannot tell whether the order by score has a higher MAP"
    return f"{unclear}; λ costs next to nothing" if known_items else f"{unclear}, and no known items show what λ costs"


def _finite(weight: float) -> float | None:
    return weight if np.isfinite(weight) else None


@dataclass(frozen=True)
class _GroupSums:
    """Sums over the queries and known items of each group, so that a resample is a weighted sum of groups."""

    average_precision_gl: Values
    precision_at_1_gl: Values
    queries_g: Counts
    first_gl: Values
    items_g: Counts

    @classmethod
    def of(cls, figures: GridFigures, number: dict[str, int]) -> _GroupSums:
        queries = np.array([number[group] for group in figures.query_groups], dtype=np.int64)
        items = np.array([number[group] for group in figures.item_groups], dtype=np.int64)

        def total(values_rl: Values, rows: npt.NDArray[np.int64]) -> Values:
            sums = np.zeros((len(number), values_rl.shape[1]))
            np.add.at(sums, rows, values_rl)
            return sums

        return cls(
            total(figures.average_precision_vl, queries),
            total(figures.precision_at_1_vl, queries),
            np.bincount(queries, minlength=len(number)).astype(np.float64),
            total(figures.first_kl, items),
            np.bincount(items, minlength=len(number)).astype(np.float64),
        )

    def means(self, drawn_rg: Counts) -> tuple[Values, Values, Values]:
        """Return the (r, l) mean AP, P@1 and known items first, with each group drawn so many times."""
        queries, items = (np.maximum(drawn_rg @ counts, 1.0)[:, None] for counts in (self.queries_g, self.items_g))
        return (
            drawn_rg @ self.average_precision_gl / queries,
            drawn_rg @ self.precision_at_1_gl / queries,
            drawn_rg @ self.first_gl / items,
        )
