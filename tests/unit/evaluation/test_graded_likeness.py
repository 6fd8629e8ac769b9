import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.evaluation.graded_likeness import CONTRAST, PLACE, SIZE, Likeness, graded_likeness
from mrcg.evaluation.masking import OwnScans, ScanAttributes
from mrcg.storage import schemas

ABSENT = (None, None, None, None, None, None)
QUERY = ("a", "axial", 0.5, 0.5, 0.02, 0.3)


def scans(*rows):
    """A table of the columns that likeness reads."""
    columns = list(zip(*rows, strict=True))
    label, plane, *facts = (list(column) for column in columns)
    table = {"image_id": [f"{row:04d}" for row in range(len(rows))], "label": label, "plane": plane}
    for name, values in zip(schemas.LESION, facts, strict=True):
        table[name] = pa.array(values, pa.float32())
    return pa.table(table)


@pytest.mark.parametrize(
    ("other", "grade"),
    [
        (QUERY, 5),
        (("b", *QUERY[1:]), 0),
        (("a", "coronal", *QUERY[2:]), 4),
        (("a", "axial", 0.5 + PLACE + 0.01, 0.5, 0.02, 0.3), 4),
        (("a", "axial", 0.5, 0.5 - PLACE + 0.01, 0.02, 0.3), 5),
        (("a", "axial", 0.5, 0.5, 0.02 * SIZE * 1.01, 0.3), 4),
        (("a", "axial", 0.5, 0.5, 0.02 / SIZE * 1.01, 0.3), 5),
        (("a", "axial", 0.5, 0.5, 0.02, 0.3 + CONTRAST + 0.01), 4),
        (("a", None, None, None, None, None), 1),
        (("a", "axial", None, 0.5, 0.0, None), 2),
        (ABSENT, 0),
    ],
)
def test_grades(other, grade):
    likeness = Likeness(scans(QUERY, other))
    assert likeness.grades(0, np.array([1])).tolist() == [grade]
    assert likeness.grades(1, np.array([0])).tolist() == [grade], "it is symmetric"


def test_unknown_facts_are_not_alike():
    likeness = Likeness(scans(ABSENT, ABSENT, ("a", None, None, None, None, None)))
    assert likeness.grades(0, np.array([0, 1, 2])).tolist() == [0, 0, 0]
    assert likeness.grades(2, np.array([0, 1, 2])).tolist() == [0, 0, 1]


def test_a_query_needs_a_class_and_one_fact_on_its_lesion():
    rows = (QUERY, (None, *QUERY[1:]), ("a", "axial", None, None, None, None), ("a", None, 0.5, 0.5, None, None))
    assert Likeness(scans(*rows)).known(np.arange(4)).tolist() == [True, False, False, True]


def in_all_orders(hits):
    return {"ann": hits, "score": hits, "served": hits}


def measured(table, hits, gallery=None, own=None, queries=(0,)):
    count = table.num_rows
    gallery = np.array([row not in queries for row in range(count)] if gallery is None else gallery)
    hits = {order: np.array(rows) for order, rows in hits.items()}
    return graded_likeness(table, np.array(queries), gallery, own, hits, [str(q) for q in queries], 100)


def test_the_order_with_the_likest_hit_first_is_best():
    other_place = ("a", "axial", 0.9, 0.9, 0.02, 0.3)
    table = scans(QUERY, QUERY, other_place, ("b", *QUERY[1:]))
    found = measured(table, {"ann": [[1, 2, 3]], "score": [[3, 2, 1]], "served": [[2, 1, -1]]})
    assert found.queries == 1
    assert found.ann.mean == 1.0
    assert found.score.mean < found.served.mean < 1.0
    assert found.served_gain.mean == pytest.approx(found.served.mean - found.ann.mean)


def test_the_ideal_has_only_scans_that_may_be_found():
    table = scans(QUERY, QUERY, ("a", "axial", 0.9, 0.9, 0.02, 0.3), QUERY)
    hits = in_all_orders([[2]])
    assert measured(table, hits, gallery=[False, True, True, False]).ann.mean < 1.0
    own = OwnScans(ScanAttributes(["a"] * 4, ["g", "g", "h", "i"], [None] * 4))
    assert measured(table, hits, gallery=[False, True, True, False], own=own).ann.mean == 1.0
    assert measured(table, hits, gallery=[False, False, True, False]).ann.mean == 1.0


def test_queries_are_drawn_by_id_where_there_are_too_many(monkeypatch):
    table = scans(*[QUERY] * 6)
    hits = in_all_orders([[5], [5], [5], [-1]])
    whole = measured(table, hits, queries=(0, 1, 2, 3))
    assert (whole.known, whole.queries, whole.ann.mean) == (4, 4, 0.75 / (1 + 1 / np.log2(3)))
    monkeypatch.setattr("mrcg.evaluation.graded_likeness.MAX_QUERIES", 2)
    one, two = (
        measured(table, in_all_orders([hits["ann"][q] for q in order]), queries=order)
        for order in ((0, 1, 2, 3), (3, 2, 1, 0))
    )
    assert (one.known, one.queries) == (4, 2)
    assert one.ann.mean == two.ann.mean, "which are drawn does not depend on their order"


def test_chance_is_the_same_hits_in_random_order():
    table = scans(QUERY, *[QUERY] * 5, *[("b", *QUERY[1:])] * 45)
    ranked = [list(range(1, 51))] * 20
    found = measured(table, in_all_orders(ranked), queries=(0,) * 20)
    assert found.ann.mean == 1.0
    assert 0 < found.chance.mean < 0.5
    pads = measured(table, in_all_orders([[1, -1, -1]]))
    assert pads.chance.mean == pads.ann.mean


def test_without_known_lesions_nothing_is_graded():
    table = scans(("a", "axial", None, None, None, None), QUERY)
    assert measured(table, in_all_orders([[1]])) is None


facts = st.one_of(st.none(), st.floats(1 / 64, 1, width=32))
rows_of_scans = st.lists(
    st.tuples(st.sampled_from(["a", "b", None]), st.sampled_from(["axial", "coronal", None]), facts, facts, facts, facts),
    min_size=3, max_size=15,
)  # fmt: skip


@given(rows_of_scans, st.randoms(use_true_random=False))
def test_no_order_is_better_than_the_ideal_and_sorting_by_grade_reaches_it(rows, random):
    table, rest = scans(*rows), list(range(1, len(rows)))
    random.shuffle(rest)
    grades = Likeness(table).grades(0, np.array(rest))
    best = [rest[place] for place in np.argsort(-grades, kind="stable")]
    found = measured(table, {"ann": [rest], "score": [best], "served": [rest]})
    if found is not None:
        assert found.score.mean == pytest.approx(1.0 if grades.any() else 0.0)
        assert 0 <= found.ann.mean <= found.score.mean + 1e-12
