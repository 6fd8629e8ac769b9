import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.hashing import digest
from mrcg.index.metadata import COLUMNS, Gallery, Where
from mrcg.storage import schemas

VALUES = ("x", "y", "z")
values = st.none() | st.sampled_from(VALUES)
rows = st.lists(
    st.fixed_dictionaries(dict.fromkeys(COLUMNS, values) | {"year": st.none() | st.integers(1999, 2003)}), max_size=20
)
wheres = st.builds(
    Where,
    **{name: st.lists(st.sampled_from((*VALUES, "nobody")), max_size=3).map(tuple) for name in COLUMNS},
    years=st.none() | st.tuples(st.integers(1998, 2004), st.integers(1998, 2004)),
)


def image(row):
    return digest(["scan", row], 32)


def table(facts, rows):
    """Table of ``schemas.ROWS``; row None is a deleted scan."""
    known = [
        dict.fromkeys(schemas.ROWS.names)
        if row is None
        else {"image_id": image(row), "row": row, "group_id": "g", **scan}
        for scan, row in zip(facts, rows, strict=True)
    ]
    return pa.Table.from_pylist(known, schemas.ROWS)


def gallery(facts, parts=1):
    """A gallery of scans, cut into unordered parts, each with a deleted row."""
    order = np.random.default_rng(len(facts)).permutation(len(facts)).tolist()
    tables = []
    for part in range(parts):
        part_rows = [row for row in order if row % parts == part]
        tables.append(table([*(facts[row] for row in part_rows), {}], [*part_rows, None]))
    return Gallery(tables)


def passes(facts, where):
    named = {name: getattr(where, name) for name in COLUMNS}
    inside = where.years is None or (facts["year"] is not None and where.years[0] <= facts["year"] <= where.years[1])
    return inside and all(facts[name] in some for name, some in named.items() if some)


@given(rows, wheres, st.integers(1, 4))
def test_a_filter_agrees_with_plain_python(facts, where, parts):
    mask = gallery(facts, parts).mask(where)
    assert mask.dtype == bool
    assert mask.tolist() == [passes(scan, where) for scan in facts]


@pytest.mark.parametrize("name", COLUMNS)
def test_an_unknown_value_never_passes(name):
    known, unknown = dict.fromkeys((*COLUMNS, "year"), None) | {name: "x"}, dict.fromkeys((*COLUMNS, "year"), None)
    assert gallery([known, unknown]).mask(Where(**{name: ("x", "None", "")})).tolist() == [True, False]
    assert gallery([known, unknown]).mask(Where(years=(0, 9999))).tolist() == [False, False]
    assert gallery([known, unknown]).mask(Where()).tolist() == [True, True]


def test_an_empty_string_is_a_known_value():
    facts = [dict.fromkeys((*COLUMNS, "year"), None) | {"site": site} for site in ("", None)]
    assert gallery(facts).mask(Where(site=("",))).tolist() == [True, False]


@pytest.mark.parametrize(("years", "passing"), [((2000, 2001), [0, 1]), ((2001, 2000), []), ((-5, 10**6), [0, 1, 2])])
def test_years_are_both_included(years, passing):
    facts = [dict.fromkeys(COLUMNS) | {"year": year} for year in (2000, 2001, 2002, None)]
    assert np.flatnonzero(gallery(facts).mask(Where(years=years))).tolist() == passing


@given(rows, st.integers(1, 4))
def test_rows_ids_and_labels_are_those_of_the_scans(facts, parts):
    made, everywhere = gallery(facts, parts), np.arange(len(facts))
    assert len(made) == len(facts)
    assert made.ids(everywhere) == [image(row) for row in range(len(facts))]
    assert made.values("label", everywhere[::-1]) == [scan["label"] for scan in reversed(facts)]
    images = [image(row) for row in (3, 99, 0, 3)]
    assert made.rows_of(images).tolist() == [row for row in (3, 0, 3) if row < len(facts)]


@given(rows, st.sampled_from(COLUMNS), st.integers(1, 4))
def test_codes_distinguish_values_and_unknown(facts, name, parts):
    codes = gallery(facts, parts).codes(name)
    assert len(codes) == len(facts)
    for one, other in itertools.product(range(len(facts)), repeat=2):
        assert (codes[one] == codes[other]) == (facts[one][name] == facts[other][name])
    assert [code == -1 for code in codes] == [scan[name] is None for scan in facts]


def some_shards():
    """Rows 1, 4 and 6 are open; the others belong to shards that are not."""
    here = {
        row: dict.fromkeys((*COLUMNS, "year"), None) | {"label": label}
        for row, label in [(6, "x"), (1, "y"), (4, None)]
    }
    return Gallery([table(here.values(), here)])


def test_rows_of_shards_that_are_not_open_are_unknown():
    made = some_shards()
    assert len(made) == 7
    assert made.rows.tolist() == [1, 4, 6]
    assert made.mask(Where()).tolist() == [False, True, False, False, True, False, True]
    assert made.mask(Where(label=("x", "y"))).tolist() == [False, True, False, False, False, False, True]
    codes = made.codes("label")
    assert codes[[0, 2, 3, 4, 5]].tolist() == [-1] * 5
    assert len({-1, codes[1], codes[6]}) == 3
    assert made.ids(np.array([6, 1])) == [image(6), image(1)]
    assert made.values("label", np.array([4, 6])) == [None, "x"]
    assert made.rows_of([image(0), image(4), image(6)]).tolist() == [4, 6]


@pytest.mark.parametrize("row", [0, 5, 7])
def test_a_row_that_is_not_open_is_an_error(row):
    with pytest.raises((AssertionError, IndexError)):
        some_shards().ids(np.array([row]))


@pytest.mark.parametrize("tables", [[], [schemas.ROWS.empty_table()], [table([{}], [None])]])
def test_an_empty_gallery(tables):
    made = Gallery(tables)
    assert len(made) == 0
    assert made.ids(np.empty(0, np.int64)) == []
    assert made.mask(Where(site=("x",), years=(2000, 2001))).tolist() == []
    assert made.codes("label").tolist() == []
    assert made.rows_of([image(1)]).tolist() == []
