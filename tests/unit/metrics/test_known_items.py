import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.metrics.known_items import ORDERS, UNCHANGED, KnownRanks, change_between
from mrcg.storage import schemas

FORMS = (UNCHANGED, "noise", "turned", "halved")
seeds, counts = st.integers(0, 10_000), st.integers(1, 12)


def known(seed, count, fitted=None):
    """Ranks of scans in three orders: from 1 to 14, or not found."""
    draws = np.random.default_rng(seed)
    ranks = {order: draws.integers(1, 16, (count, len(FORMS))).astype(np.float64) for order in ORDERS}
    for of_order in ranks.values():
        of_order[of_order == 15] = np.inf
        of_order[draws.random(of_order.shape) < 0.5] = 1
    groups = [f"g{draws.integers(0, 5)}" for _ in range(count)]
    fitted = draws.random(count) < 0.5 if fitted is None else np.full(count, fitted)
    return KnownRanks([f"id{row}" for row in range(count)], groups, fitted, FORMS, ranks)


def naive_recovery(ranks):
    """First, in the first ten, reciprocal rank: means over scans of the means over forms."""
    first = np.mean([np.mean([rank == 1 for rank in row]) for row in ranks])
    in_10 = np.mean([np.mean([rank <= 10 for rank in row]) for row in ranks])
    reciprocal = np.mean([np.mean([0.0 if rank == np.inf else 1 / rank for rank in row]) for row in ranks])
    return first, in_10, reciprocal


@given(seeds, counts)
def test_figures_equal_the_naive_ones(seed, count):
    ranks = known(seed, count)
    figures = ranks.figures(20, 1)
    parts = (
        (figures.unchanged, np.ones(count, bool), slice(0, 1)),
        (figures.changed, np.ones(count, bool), slice(1, None)),
        (figures.changed_fitted, ranks.fitted, slice(1, None)),
        (figures.changed_unseen, ~ranks.fitted, slice(1, None)),
    )
    for part, selected, forms in parts:
        if part is None:
            assert not selected.any()
            continue
        assert part.items == selected.sum()
        for order in ORDERS:
            recovery = getattr(part, order)
            expected = naive_recovery(ranks.ranks[order][selected][:, forms].tolist())
            assert (recovery.first, recovery.in_10, recovery.reciprocal_rank) == pytest.approx(expected)
    for place, form in enumerate(FORMS[1:], 1):
        for order in ORDERS:
            share = np.mean([row[place] == 1 for row in ranks.ranks[order]])
            assert getattr(figures.by_change[form], order) == pytest.approx(share)
    assert list(figures.by_change) == list(FORMS[1:])


@given(seeds, counts)
def test_intervals_contain_the_mean_and_are_repeatable(seed, count):
    figures = known(seed, count).figures(200, 3)
    assert figures == known(seed, count).figures(200, 3)
    for part in (figures.unchanged, figures.changed):
        for order in ORDERS:
            recovery = getattr(part, order)
            for name in ("first", "in_10", "reciprocal_rank"):
                bounds = getattr(recovery, f"{name}_interval")
                assert bounds.low - 1e-9 <= getattr(recovery, name) <= bounds.high + 1e-9


@pytest.mark.parametrize("fitted", [True, False])
def test_there_are_no_figures_of_scans_of_a_kind_that_is_missing(fitted):
    figures = known(1, 6, fitted).figures(20, 1)
    present, absent = figures.changed_fitted, figures.changed_unseen
    if not fitted:
        present, absent = absent, present
    assert absent is None
    assert present == figures.changed


def test_a_scan_that_is_not_found_counts_nothing():
    missing = {order: np.full((1, len(FORMS)), np.inf) for order in ORDERS}
    figures = KnownRanks(["a"], ["g"], np.array([True]), FORMS, missing).figures(20, 1)
    recovery = figures.changed.served
    assert (recovery.first, recovery.in_10, recovery.reciprocal_rank) == (0, 0, 0)


def table(ranks):
    return pa.table(ranks.columns(), schema=schemas.KNOWN_ITEMS)


@given(seeds, counts)
def test_columns_fit_the_schema_and_are_null_where_a_scan_is_not_found(seed, count):
    ranks = known(seed, count)
    rows = table(ranks).to_pylist()
    assert len(rows) == count * len(FORMS)
    for number, row in enumerate(rows):
        scan, form = divmod(number, len(FORMS))
        assert (row["image_id"], row["group_id"]) == (ranks.image_ids[scan], ranks.groups[scan])
        assert (row["fitted"], row["form"]) == (ranks.fitted[scan], FORMS[form])
        for order in ORDERS:
            rank = ranks.ranks[order][scan, form]
            assert row[f"{order}_rank"] == (None if rank == np.inf else rank)
    again = schemas.from_parquet(schemas.to_parquet(table(ranks)))
    assert again.to_pylist() == rows


def naive_share(rows, image_id):
    found = [row["served_rank"] == 1 for row in rows if row["image_id"] == image_id and row["form"] != UNCHANGED]
    return sum(found) / len(found)


@given(seeds, counts, counts, st.randoms())
def test_change_is_paired_by_scan_whatever_the_order_of_the_rows(seed, old_count, new_count, random):
    before, after = table(known(seed, old_count)), table(known(seed + 1, new_count))
    common = sorted({*before["image_id"].to_pylist()} & {*after["image_id"].to_pylist()})
    old_rows, new_rows = before.to_pylist(), after.to_pylist()
    expected = np.mean([naive_share(new_rows, name) - naive_share(old_rows, name) for name in common])
    change = change_between(before, after, 50, 1)
    assert change.mean == pytest.approx(expected, abs=1e-12)
    assert change.low - 1e-9 <= change.mean <= change.high + 1e-9
    places = list(range(len(old_rows)))
    random.shuffle(places)
    assert change_between(before.take(pa.array(places)), after, 50, 1) == change


def test_equal_reports_have_no_change():
    ranks = table(known(3, 8))
    change = change_between(ranks, ranks, 50, 1)
    assert (change.mean, change.low, change.high) == (0, 0, 0)


def test_reports_without_a_common_scan_cannot_be_compared():
    ranks = table(known(3, 4))
    others = ranks.set_column(0, schemas.KNOWN_ITEMS.field("image_id"), pa.array(["x"] * len(ranks)))
    assert change_between(ranks, others, 50, 1) is None
    assert change_between(ranks, ranks.slice(0, 0), 50, 1) is None


def test_the_unchanged_form_and_the_other_orders_do_not_change_the_comparison():
    ranks = known(5, 6)
    other = {order: values if order == "served" else values + 1 for order, values in ranks.ranks.items()}
    other["served"] = other["served"].copy()
    other["served"][:, 0] += 1
    changed = KnownRanks(ranks.image_ids, ranks.groups, ranks.fitted, FORMS, other)
    assert change_between(table(ranks), table(changed), 50, 1).mean == 0
