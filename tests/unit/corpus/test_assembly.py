import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from tests import factories
from tests.unit.imaging.test_raster import encoded, slice_of

from mrcg.corpus import assembly
from mrcg.corpus.assembly import bad_rows, labels_that_differ_by_case, rename_groups_of_removed
from mrcg.corpus.sources import SourceFile
from mrcg.storage import schemas


def segment(*files, rules=None):
    contents = {file.key: encoded(slice_of(40 + len(file.key))) for file in files}
    return factories.ingest(list(files), lambda file: contents[file.key], rules or factories.rules_of())


def test_copies_share_a_cluster_across_segments():
    data = encoded(slice_of())
    parts = [
        factories.ingest([SourceFile(key, "", 0, "a")], lambda file: data, factories.rules_of())
        for key in ("a/1", "a/2")
    ]
    joined, out = factories.join(parts, factories.rules_of())
    table = schemas.from_parquet(out.content["scans/00000.parquet"])
    assert table.schema == schemas.SCANS
    assert len(set(table["image_id"].to_pylist())) == 2
    assert len(set(table["group_id"].to_pylist())) == 1
    assert (joined.counts.images, joined.counts.distinct, joined.counts.clusters) == (2, 1, 1)


def test_a_file_listed_twice_is_ingested_once():
    file = SourceFile("1.png", "s", 0)
    joined, out = factories.join([segment(file), segment(file)], factories.rules_of())
    assert joined.counts.images == 1
    refused = schemas.from_parquet(out.content["quarantine/00000.parquet"])
    assert refused["reason"].to_pylist() == ["listed_twice"]


def test_bad_files_exclude_bad_slices_and_harmless_reasons():
    rows = [
        {"source_key": "1", "stamp": "", "frame": None, "reason": "blank", "detail": "d"},
        {"source_key": "2", "stamp": "", "frame": 3, "reason": "blank", "detail": "d"},
        {"source_key": "3", "stamp": "", "frame": None, "reason": "dicomdir", "detail": "d"},
        {"source_key": "4", "stamp": "", "frame": None, "reason": "suppressed", "detail": "d"},
    ]
    table = pa.Table.from_pylist(rows, schemas.QUARANTINE)
    assert bad_rows(table)["source_key"].to_pylist() == ["1"]


def test_without_usable_files_tables_are_empty_and_the_first_reason_is_reported():
    bad = factories.ingest([SourceFile("x", "s", 0)], lambda file: b"words", factories.rules_of())
    joined, out = factories.join([bad], factories.rules_of())
    assert (joined.counts.images, joined.bad_files, joined.first_bad) == (0, 1, ("x", "not_an_image"))
    assert schemas.from_parquet(out.content["scans/00000.parquet"]).num_rows == 0
    assert np.array_equal(list(joined.counts.classes), [])


# Names of removed scans -------------------------------------------------------------------------------------------


def scan(ident, group, joins=(), patient=None, study=None):
    """A row of ``schemas.SCANS`` with an id, a group and, if given, a patient and a study."""
    return {
        "image_id": ident, "file": "images/a.parquet", "file_row": 0, "group_id": group, "joins": list(joins),
        "cluster_id": ident, "generation": 0, "source_key": ident, "stamp": "", "frame": 0, "patient": patient,
        "study": study, "pixel_hash": ident, "difference_hash": bytes(32),
    }  # fmt: skip


def table_of(*rows):
    return pa.Table.from_pylist(list(rows), schemas.SCANS)


def groups_of(scans):
    return dict(zip(scans["image_id"].to_pylist(), scans["group_id"].to_pylist(), strict=True))


def test_a_group_named_after_a_removed_scan_is_renamed_to_its_smallest_member():
    stay = table_of(scan("c", "a"), scan("b", "a"), scan("e", "e"))
    renamed = rename_groups_of_removed(stay, table_of(scan("a", "a")))
    assert groups_of(renamed) == {"c": "b", "b": "b", "e": "e"}
    assert renamed.schema == schemas.SCANS


def test_scans_without_a_patient_in_the_group_of_a_removed_patient_stay_together():
    stay = table_of(scan("m", "jane"), scan("k", "jane"), scan("z", "study", joins=["jane"]))
    gone = table_of(scan("a", "jane", patient="jane", study="study"))
    renamed = rename_groups_of_removed(stay, gone)
    assert groups_of(renamed) == {"m": "k", "k": "k", "z": "z"}
    assert renamed["joins"].to_pylist() == [[], [], ["k"]], "the join is renamed with its group"


def test_the_group_of_a_patient_with_remaining_scans_keeps_its_name():
    stay = table_of(scan("b", "jane", patient="jane", study="first"))
    assert groups_of(rename_groups_of_removed(stay, table_of(scan("a", "jane", patient="jane", study="second")))) == {
        "b": "jane"
    }


def test_a_join_to_an_empty_group_is_dropped():
    stay = table_of(scan("b", "b", joins=["a", "c"]), scan("c", "c"))
    assert rename_groups_of_removed(stay, table_of(scan("a", "a")))["joins"].to_pylist() == [["c"], []]


def test_scans_are_unchanged_if_no_group_has_a_removed_name():
    stay = table_of(scan("b", "b", joins=["c"]), scan("c", "c"))
    assert rename_groups_of_removed(stay, table_of(scan("a", "a"))) is stay
    empty = table_of()
    assert rename_groups_of_removed(empty, table_of(scan("a", "a"))) is empty


@st.composite
def corpora(draw):
    """Scans in groups named after members or patients, and the scans of them that are removed."""
    size = draw(st.integers(2, 14))
    idents = [f"{number:02d}" for number in draw(st.permutations(range(size)))]
    people = [draw(st.sampled_from([None, None, "jane", "joe"])) for _ in idents]
    rows = []
    for place, (ident, person) in enumerate(zip(idents, people, strict=True)):
        others = [*idents[: place + 1], "jane", "joe"]
        group = person or draw(st.sampled_from(others))
        rows.append(scan(ident, group, draw(st.lists(st.sampled_from(others), max_size=2, unique=True)), person))
    going = set(draw(st.lists(st.sampled_from(["jane", "joe", *idents]), min_size=1, max_size=4)))
    gone = [row for row in rows if row["image_id"] in going or row["patient"] in going]
    return [row for row in rows if row not in gone], gone


@given(corpora())
def test_group_names_hold_no_removed_id_and_groups_stay_together(drawn):
    stay, gone = drawn
    renamed = rename_groups_of_removed(table_of(*stay), table_of(*gone)).to_pylist()
    people = {row["patient"] for row in stay}
    forgotten = {row["image_id"] for row in gone} | {row["patient"] for row in gone} - people - {None}
    assert [row["image_id"] for row in renamed] == [row["image_id"] for row in stay]
    for row, old in zip(renamed, stay, strict=True):
        assert not {row["group_id"], *row["joins"]} & forgotten
        kept = {name for name in old["joins"] if name not in forgotten}
        assert kept <= set(row["joins"])
        if old["group_id"] not in forgotten:
            assert row["group_id"] == old["group_id"]
    for row, old in zip(renamed, stay, strict=True):
        for other, before in zip(renamed, stay, strict=True):
            if old["group_id"] == before["group_id"]:
                assert row["group_id"] == other["group_id"]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), max_size=20, unique_by=lambda one: one[0]), st.data())
def test_a_cluster_named_after_a_removed_scan_is_renamed_to_its_smallest_member(members, data):
    clusters = {}
    for ident, cluster in members:
        clusters.setdefault(cluster, []).append(f"{ident:02d}")
    first = {ident: min(some) for some in clusters.values() for ident in some}
    stay = sorted(data.draw(st.sets(st.sampled_from(sorted(first)))) if first else [])
    table = table_of(*({**scan(ident, "g"), "cluster_id": first[ident]} for ident in stay))
    renamed = assembly._rename_clusters(table)
    left = {name: [ident for ident in stay if first[ident] == name] for name in first.values()}
    wanted = [first[ident] if first[ident] in stay else min(left[first[ident]]) for ident in stay]
    assert renamed["cluster_id"].to_pylist() == wanted
    assert renamed.drop_columns("cluster_id").equals(table.drop_columns("cluster_id"))
    assert renamed.schema == schemas.SCANS


def test_labels_that_differ_by_case_are_named_together():
    assert labels_that_differ_by_case(["gliome", "other", "Gliome", "GLIOME"]) == [["GLIOME", "Gliome", "gliome"]]
    assert labels_that_differ_by_case(["a", "b"]) == []
