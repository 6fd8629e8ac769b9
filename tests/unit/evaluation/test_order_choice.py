import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.evaluation.order_choice import (
    GRID,
    MOST,
    NEARLY_ALL,
    GainVerdict,
    GridFigures,
    best_weight,
    choose_order,
    order_of,
)
from mrcg.metrics.order import BY_DISTANCE
from mrcg.metrics.report import SEED

COUNT = len(GRID)
CLEAR, UNCLEAR, NONE = GainVerdict.CLEAR, GainVerdict.UNCLEAR, GainVerdict.NONE
#: Shares on a grid, so that no two values differ by about the tolerance.
curves = st.lists(st.integers(0, 20).map(lambda k: k / 20), min_size=6, max_size=6).map(np.array)
seeds = st.integers(0, 10_000)


def naive_best(maps, precisions, firsts, gain):
    """Position of the largest weight with the highest value, then of the next one that keeps P@1."""
    gained, last, measured = maps[0] - maps[-1], len(maps) - 1, firsts[-1] > 0
    known = [min(1.0, first / firsts[-1]) if measured else 1.0 for first in firsts]
    if gain is UNCLEAR and measured:
        return next(
            n
            for n in range(last + 1)
            if known[n] >= NEARLY_ALL and maps[n] >= maps[-1] - 0.001 and precisions[n] >= precisions[-1] - 0.005
        )
    if gain is not CLEAR or gained <= 1e-9:
        return last
    values = [
        k + min(1.0, (m - maps[-1]) / gained) / 2 if k >= MOST else -1e9 for m, k in zip(maps, known, strict=True)
    ]
    place = max(number for number, value in enumerate(values) if value > max(values) - 1e-9)
    while precisions[place] < precisions[-1] - 1e-9 or known[place] < MOST:
        place += 1
    return place


@given(curves, curves, curves, st.sampled_from(GainVerdict))
def test_best_weight_equals_the_naive_one(maps, precisions, firsts, gain):
    expected = naive_best(maps.tolist(), precisions.tolist(), firsts.tolist(), gain)
    assert best_weight(maps, precisions, firsts, gain) == expected


@given(curves, curves, curves)
def test_the_best_weight_keeps_precision_at_1_and_known_items_of_the_ann_order(maps, precisions, firsts):
    place = best_weight(maps, precisions, firsts, CLEAR)
    assert precisions[place] >= precisions[-1]
    assert firsts[place] >= MOST * firsts[-1] - 1e-9
    place = best_weight(maps, precisions, firsts, UNCLEAR)
    assert precisions[place] >= precisions[-1] - 0.005
    assert firsts[place] >= NEARLY_ALL * firsts[-1] - 1e-9


def test_known_items_and_the_gain_are_weighed_two_to_one():
    flat, maps = np.ones(4), np.array([0.8, 0.8, 0.78, 0.4])
    # The second weight loses 4 of 100 known items, the third a twentieth of the gain.
    assert best_weight(maps, flat, np.array([0.1, 0.96, 1.0, 1.0]), CLEAR) == 2
    assert best_weight(maps, flat, np.array([0.1, 0.98, 1.0, 1.0]), CLEAR) == 1
    assert best_weight(maps, flat, np.array([1.0, 0.98, 1.0, 1.0]), CLEAR) == 0


def test_no_gain_outweighs_more_than_a_few_known_items():
    flat, maps = np.ones(4), np.array([0.8, 0.8, 0.5, 0.4])
    assert best_weight(maps, flat, np.array([0.1, MOST, 1.0, 1.0]), CLEAR) == 1
    assert best_weight(maps, flat, np.array([0.1, MOST - 0.01, 1.0, 1.0]), CLEAR) == 2
    assert best_weight(maps, flat, np.array([0.1, 0.5, 0.9, 1.0]), CLEAR) == 3


def test_among_equal_weights_the_largest_is_taken():
    flat = np.ones(5)
    assert best_weight(np.array([0.8, 0.8, 0.8, 0.8, 0.5]), flat, flat, CLEAR) == 3
    assert best_weight(np.array([0.8, 0.8, 0.8 - 1e-12, 0.7, 0.5]), flat, flat, CLEAR) == 2


def test_a_loss_of_precision_at_1_moves_to_the_next_larger_weight():
    maps, firsts = np.array([0.9, 0.9, 0.8, 0.7, 0.5]), np.ones(5)
    assert best_weight(maps, np.array([0.6, 0.9, 0.6, 0.6, 0.9]), firsts, CLEAR) == 1
    assert best_weight(maps, np.array([0.6, 0.8, 0.85, 0.9, 0.9]), firsts, CLEAR) == 3
    assert best_weight(maps, np.array([0.6, 0.8, 0.85, 0.88, 0.9]), firsts, CLEAR) == 4
    assert best_weight(maps, np.array([0.6, 0.9 - 1e-12, 0.6, 0.6, 0.9]), firsts, CLEAR) == 1
    # The next larger weight keeps P@1, but half of the known items only.
    assert best_weight(np.array([1.0, 0.5, 0.5]), np.array([0.5, 1.0, 1.0]), np.array([1.0, 0.5, 1.0]), CLEAR) == 2


def test_without_known_items_in_the_ann_order_the_gain_alone_decides():
    maps = np.array([0.9, 0.9, 0.8, 0.5])
    assert best_weight(maps, np.ones(4), np.zeros(4), CLEAR) == 1


@pytest.mark.parametrize("by_score", [0.5, 0.4])
def test_where_the_score_gains_nothing_the_weight_is_infinity(by_score):
    maps = np.linspace(by_score, 0.5, 4)
    maps[1] = 0.9
    for gain in (CLEAR, NONE):
        assert best_weight(maps, np.ones(4), np.ones(4), gain) == 3


def test_where_the_gain_is_unclear_the_smallest_weight_that_costs_nothing_is_taken():
    maps, flat = np.array([0.95, 0.94, 0.9595, 0.97, 0.96]), np.ones(5)
    assert best_weight(maps, flat, np.array([0.1, 0.99, 0.99, 1.0, 1.0]), UNCLEAR) == 2
    assert best_weight(maps, flat, np.array([0.1, 0.5, 0.97, 1.0, 1.0]), UNCLEAR) == 3
    assert best_weight(maps, np.array([1.0, 1.0, 0.99, 0.996, 1.0]), flat, UNCLEAR) == 3
    assert best_weight(maps, np.array([1.0, 1.0, 0.8, 0.8, 1.0]), flat, UNCLEAR) == 4
    assert best_weight(maps, flat, np.zeros(5), UNCLEAR) == 4, "known items were not measured"


def unclear(seed):
    """A gain in MAP that is nothing on average, but differs between scans."""
    data = figures(seed, noise=0.0)
    luck = np.random.default_rng(seed).normal(size=(len(data.average_precision_vl), 1)) * 0.2
    maps = 0.7 + (luck - luck.mean() - 2e-3) * (np.arange(COUNT) < COUNT - 1)
    return GridFigures(maps, data.precision_at_1_vl, data.query_groups, data.first_kl, data.item_groups)


@given(seeds)
def test_validation_scans_that_cannot_tell_give_a_weight_that_costs_no_known_items(seed):
    choice = choose_order(unclear(seed), 100)
    assert "cannot tell" in choice.reason
    # Every weight but infinity loses two thousandths of MAP here, so only infinity costs next to nothing.
    assert choice.order == BY_DISTANCE


def test_the_grid_ends_with_the_ann_order():
    assert order_of(GRID[0]).distance_weight == 0
    assert {order_of(weight).name for weight in GRID[:-1]} == {"fused"}
    assert order_of(GRID[-1]) == BY_DISTANCE
    assert list(GRID) == sorted(set(GRID))


def figures(seed, queries=40, items=40, groups=30, noise=0.02):
    """Gain in MAP up to the sixth weight, known items from the fifth on, noise of single scans."""
    draws, place = np.random.default_rng(seed), np.arange(COUNT)
    maps, firsts = np.where(place <= 5, 0.9, 0.5), np.where(place >= 4, 1.0, 0.3)

    def each(curve, count):
        return np.clip(curve + noise * draws.normal(size=(count, 1)), 0, 1)

    def names(count):
        return [f"g{number}" for number in draws.integers(0, groups, count)]

    return GridFigures(
        each(maps, queries), np.ones((queries, COUNT)), names(queries), each(firsts, items), names(items)
    )


@given(seeds)
def test_for_clear_data_the_weight_is_found_and_its_interval_covers_it(seed):
    choice = choose_order(figures(seed), 100)
    assert choice.order == order_of(GRID[5])
    assert choice.weight_low <= GRID[5] <= choice.weight_high
    assert "keeps most of the known items" in choice.reason


def random_figures(seed):
    draws = np.random.default_rng(seed)
    queries, items = draws.integers(1, 9), draws.integers(0, 7)

    def names(count, first):
        return [f"{first}{number}" for number in draws.integers(0, 4, count)]

    return GridFigures(
        draws.integers(0, 11, (queries, COUNT)) / 10,
        draws.integers(0, 2, (queries, COUNT)).astype(np.float64),
        names(queries, "g"),
        draws.integers(0, 7, (items, COUNT)) / 6,
        names(items, str(draws.choice(["g", "h"]))),
    )


def naive_means(data, drawn):
    """Means of the columns, each row as often as its group was drawn; zeros without rows."""

    def mean(values, groups):
        rows = [row for row, group in zip(values.tolist(), groups, strict=True) for _ in range(int(drawn[group]))]
        return np.array(rows).mean(axis=0) if rows else np.zeros(COUNT)

    return (
        mean(data.average_precision_vl, data.query_groups),
        mean(data.precision_at_1_vl, data.query_groups),
        mean(data.first_kl, data.item_groups),
    )


def number_of(weight):
    return GRID.index(np.inf if weight is None else weight)


@given(seeds)
def test_choice_grid_and_interval_equal_the_naive_ones(seed):
    data, resamples = random_figures(seed), 30
    choice = choose_order(data, resamples)
    groups = sorted({*data.query_groups, *data.item_groups})
    means = naive_means(data, dict.fromkeys(groups, 1))
    draws = np.random.default_rng(SEED).multinomial(len(groups), [1 / len(groups)] * len(groups), resamples)
    drawn_means = [naive_means(data, dict(zip(groups, drawn, strict=True))) for drawn in draws]
    low, high = np.quantile([maps[0] - maps[-1] for maps, _, _ in drawn_means], [0.025, 0.975])
    gain = NONE if high <= 1e-9 else CLEAR if low > 1e-9 else UNCLEAR
    assert choice.order == order_of(GRID[naive_best(*means, gain)])
    assert [number_of(row.weight) for row in choice.grid] == list(range(COUNT))
    assert [row.map for row in choice.grid] == pytest.approx(means[0])
    assert [row.precision_at_1 for row in choice.grid] == pytest.approx(means[1])
    known = [row.known_first for row in choice.grid]
    assert known == (pytest.approx(means[2]) if len(data.first_kl) else [None] * COUNT)
    places = sorted(naive_best(*each, gain) for each in drawn_means)
    low, high = (places[round(share * (resamples - 1))] for share in (0.025, 0.975))
    assert (number_of(choice.weight_low), number_of(choice.weight_high)) == (low, high)


@given(seeds)
def test_equal_seeds_give_equal_results(seed):
    assert choose_order(random_figures(seed), 20) == choose_order(random_figures(seed), 20)


def test_the_order_of_the_scans_does_not_matter():
    data = figures(1, noise=0.3)
    turned = GridFigures(
        data.average_precision_vl[::-1],
        data.precision_at_1_vl[::-1],
        data.query_groups[::-1],
        data.first_kl[::-1],
        data.item_groups[::-1],
    )
    one, other = choose_order(data, 50), choose_order(turned, 50)
    assert (one.order, one.weight_low, one.weight_high) == (other.order, other.weight_low, other.weight_high)


def test_validation_scans_without_irrelevant_hits_give_the_ann_order():
    ones = np.ones((8, COUNT))
    groups = [f"g{number}" for number in range(8)]
    choice = choose_order(GridFigures(ones, ones, groups, np.tile(np.linspace(0.2, 1, COUNT), (8, 1)), groups), 50)
    assert choice.order == BY_DISTANCE
    assert (choice.weight_low, choice.weight_high) == (None, None)
    assert choice.reason == "the order by score has no higher MAP than the ANN order on the validation scans"
    assert [row.map for row in choice.grid] == [1.0] * COUNT


def test_without_validation_scans_the_order_is_by_distance_with_a_reason():
    nothing = np.empty((0, COUNT))
    for items in (0, 3):
        choice = choose_order(GridFigures(nothing, nothing, [], np.ones((items, COUNT)), ["g"] * items), 50)
        assert choice.order == BY_DISTANCE
        assert choice.reason == "there are no validation scans to choose the order on"
        assert (choice.grid, choice.weight_low, choice.weight_high) == ((), None, None)


def test_without_known_items_the_largest_weight_that_keeps_the_gain_is_chosen():
    data = figures(2, items=0, noise=0.0)
    assert choose_order(data, 50).order == order_of(GRID[5])
