import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from mrcg.config.loading import load_config
from mrcg.corpus.grouping import conflicts, group_scans, separate_repeats
from mrcg.corpus.splits import make_splits
from mrcg.storage import schemas


def scan(n, look, patient=None, **more):
    """A row; scans of the same look are near-duplicates, others are far apart."""
    return {
        "image_id": f"i{n:04d}", "file": "f", "file_row": n, "label": "a", "group_id": "", "joins": [], "cluster_id": "",
        "generation": 0, "source_key": f"k{n}", "stamp": "s", "frame": 0, "patient": patient, "pixel_hash": f"p{n}",
        "difference_hash": bytes([look * 37 % 256, look]) * 16, **more,
    }  # fmt: skip


def table(*rows):
    return pa.Table.from_pylist(list(rows), schemas.SCANS)


def grouped(*rows, generation=0):
    return group_scans(table(*rows), generation, 12).to_pylist()


def by_id(rows):
    return {row["image_id"]: row for row in rows}


def test_patients_are_groups_and_scans_without_a_patient_are_grouped_by_cluster():
    rows = grouped(scan(1, 1, "P"), scan(2, 2, "P"), scan(3, 3), scan(4, 3), scan(5, 4))
    assert [row["group_id"] for row in rows] == ["P", "P", "i0003", "i0003", "i0005"]
    assert [row["cluster_id"] for row in rows] == ["i0001", "i0002", "i0003", "i0003", "i0005"]
    assert all(row["joins"] == [] for row in rows)


def test_without_a_patient_the_study_is_the_group():
    rows = grouped(scan(1, 1, study="S"), scan(2, 2, study="S"), scan(3, 3, "P", study="S"))
    assert [row["group_id"] for row in rows] == ["S", "S", "P"]


def test_a_near_duplicate_without_a_patient_joins_the_patients_group():
    rows = grouped(scan(1, 1, "P"), scan(2, 1), scan(3, 1, "Q"))
    assert rows[1]["group_id"] == "P"
    assert rows[1]["joins"] == ["Q"]
    assert [rows[0]["joins"], rows[2]["joins"]] == [[], []]


looks = st.lists(st.tuples(st.integers(0, 8), st.sampled_from([None, None, "P", "Q"])), min_size=1, max_size=14)


@given(looks, st.randoms())
def test_groups_do_not_depend_on_the_order(members, rng):
    rows = [scan(n, look, patient) for n, (look, patient) in enumerate(members)]
    straight = by_id(grouped(*rows))
    rng.shuffle(rows)
    shuffled = by_id(grouped(*rows))
    assert all(shuffled[one]["group_id"] == row["group_id"] for one, row in straight.items())
    assert all(shuffled[one]["joins"] == row["joins"] for one, row in straight.items())


@given(looks, looks)
def test_old_scans_keep_their_group_and_split(first, then):
    old = grouped(*(scan(n + 100, look, patient) for n, (look, patient) in enumerate(first)))
    # New ids may sort before old ones.
    new = [scan(n, look, patient, generation=1) for n, (look, patient) in enumerate(then)]
    both = grouped(*old, *new, generation=1)
    keep = ("image_id", "group_id", "joins")
    assert [[row[k] for k in keep] for row in both[: len(old)]] == [[row[k] for k in keep] for row in old]
    settings = load_config(None, ["split.protocol=dedup", "split.train_fraction=0.5"]).split
    # Twelve more scans make sure that both parts have a member.
    ends = grouped(*(scan(900 + n, 20 + n) for n in range(12)))
    before = make_splits(table(*old, *ends), settings, 1)["split"].to_pylist()[: len(old)]
    after = make_splits(table(*both, *ends), settings, 1)["split"].to_pylist()
    assert after[: len(old)] == before
    # No near-duplicate of a scan without a patient is in the other part.
    for row, part in zip(both, after, strict=False):
        for other, its in zip(both, after, strict=False):
            if row["cluster_id"] == other["cluster_id"] and row["patient"] is None and {part, its} == {"train", "test"}:
                assert other["patient"] is None or row["generation"] == 0, (row, other)


def test_a_new_scan_joins_the_old_group_of_its_near_duplicate():
    old = grouped(scan(1, 1), scan(2, 2))
    bridge = scan(3, 1, generation=1)
    near_both = bytearray(bridge["difference_hash"])
    rows = grouped(*old, {**bridge, "difference_hash": bytes(near_both)}, generation=1)
    assert rows[2]["group_id"] == "i0001"
    assert rows[2]["joins"] == []


def test_slices_are_numbered_by_position_within_their_series():
    rows = grouped(
        scan(1, 1, series="A", position_mm=10.0), scan(2, 2, series="B", position_mm=0.0),
        scan(3, 3, series="A", position_mm=-5.0), scan(4, 4, series="A"), scan(5, 5),
        scan(6, 6, plane="axial", source_key="v", frame=7, position_mm=7.0),
        scan(7, 7, plane="axial", source_key="v", frame=3, position_mm=3.0),
    )  # fmt: skip
    assert [row["slice_number"] for row in rows] == [1, 0, 0, None, None, 1, 0]


def test_repeated_ids_are_separated():
    kept, repeated = separate_repeats(table(scan(1, 1), scan(2, 2), scan(1, 1, source_key="again")))
    assert kept["image_id"].to_pylist() == ["i0001", "i0002"]
    assert repeated["source_key"].to_pylist() == ["again"]


def test_copies_whose_labels_differ_are_found():
    rows = table(
        scan(1, 1, pixel_hash="x", label="a"), scan(2, 1, pixel_hash="x", label="b"), scan(3, 1, pixel_hash="x", label=None),
        scan(4, 2, pixel_hash="y", label="a"), scan(5, 2, pixel_hash="y", label="a"), scan(6, 2, pixel_hash="y", label=None),
    )  # fmt: skip
    assert conflicts(rows) == {"x": ["a", "b"]}
