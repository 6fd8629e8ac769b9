import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mrcg.config.loading import load_config
from mrcg.corpus.splits import make_splits
from mrcg.errors import SourceError
from mrcg.storage import schemas


def scans(count, groups=None, **columns):
    rows = [
        {
            "image_id": f"i{n}", "file": "f", "label": "a", "group_id": f"g{groups[n] if groups else n}", "source_key": f"k{n}",
            "file_row": n, "joins": [], "cluster_id": f"c{n}", "generation": 0, "stamp": "s", "frame": 0,
            "pixel_hash": "p", "difference_hash": bytes(32), **{name: values[n] for name, values in columns.items()},
        }
        for n in range(count)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schemas.SCANS)


def split(table, protocol, *more):
    return make_splits(table, load_config(None, [f"split.protocol={protocol}", *more]).split, 1)


@given(st.lists(st.integers(0, 30), min_size=40, max_size=120))
def test_dedup_never_divides_a_group(groups):
    try:
        table = split(scans(len(groups), groups), "dedup")
    except SourceError:
        assume(False)
    of_group = {}
    for group, part, validation in zip(
        groups, table["split"].to_pylist(), table["validation"].to_pylist(), strict=True
    ):
        assert of_group.setdefault(group, (part, validation)) == (part, validation)


@given(st.integers(60, 90), st.integers(1, 60), st.sampled_from(["paper", "dedup"]))
def test_new_scans_never_move_old_ones(count, more, protocol):
    before, after = split(scans(count), protocol), split(scans(count + more), protocol)
    assert after["split"].to_pylist()[:count] == before["split"].to_pylist()
    assert after["validation"].to_pylist()[:count] == before["validation"].to_pylist()


def test_fractions_are_about_right():
    table = split(scans(4000), "paper")
    names, validation = table["split"].to_pylist(), table["validation"].to_pylist()
    assert abs(names.count("train") / 4000 - 0.7) < 0.03
    assert abs(sum(validation) / names.count("train") - 0.1) < 0.03
    assert not any(v and name != "train" for v, name in zip(validation, names, strict=True))


def test_the_protocols_given_and_folds():
    table = split(scans(3, source_split=["Training", "test", None]), "given")
    assert table["split"].to_pylist() == ["train", "test", "none"]
    table = split(scans(3, fold=[0, 1, None]), "folds", "split.test_fold=1")
    assert table["split"].to_pylist() == ["train", "test", "none"]


def test_unlabelled_scans_are_in_no_part():
    table = split(scans(60, label=[None] + ["a"] * 59), "paper")
    assert table["split"].to_pylist()[0] == "none"


def test_an_empty_part_is_an_error():
    with pytest.raises(SourceError, match="protocol given: .* set another split.protocol"):
        split(scans(5), "given")


def test_a_scan_that_joins_groups_of_both_parts_is_in_neither():
    alone = split(scans(40), "dedup")["split"].to_pylist()
    one, other = alone.index("train"), alone.index("test")
    same = next(n for n in range(one + 1, 40) if alone[n] == "train")
    table = split(scans(42, [*range(40), one, one], joins=[[]] * 40 + [[f"g{other}"], [f"g{same}"]]), "dedup")
    assert table["split"].to_pylist()[:40] == alone
    assert table["split"].to_pylist()[40:] == ["none", "train"]


def test_without_labels_the_error_says_how_to_set_them():
    with pytest.raises(SourceError, match=r"no scan has a label: .* ingest.classes"):
        split(scans(5, label=[None] * 5), "paper")


@given(st.lists(st.integers(0, 30), min_size=40, max_size=120))
def test_held_out_scans_are_whole_training_groups_outside_validation(groups):
    made = scans(len(groups), groups)
    try:
        table = split(made, "dedup", "split.held_out_fraction=0.4")
    except SourceError:
        assume(False)
    of_group = {}
    for row, group in zip(table.to_pylist(), groups, strict=True):
        assert not row["held_out"] or (row["split"] == "train" and not row["validation"])
        assert of_group.setdefault(group, row["held_out"]) == row["held_out"]
    # The other columns do not change.
    without = split(made, "dedup")
    assert not any(without["held_out"].to_pylist())
    assert table.drop_columns(["held_out"]).equals(without.drop_columns(["held_out"]))


@pytest.mark.parametrize(("patient", "why"), [("p", "are of one patient"), (None, "are in one group")])
def test_where_all_scans_are_of_one_patient_the_message_says_so(patient, why):
    table = scans(24, [0] * 24, patient=[patient] * 24)
    with pytest.raises(SourceError, match=f"all 24 scans {why}.*ingest.unknown_patients"):
        split(table, "dedup")
