import numpy as np
from tests import making
from tests.unit.imaging.test_raster import encoded, slice_of

from mrcg import schemas
from mrcg.joining import bad_rows
from mrcg.source import SourceFile


def segment(*files, rules=None):
    contents = {file.key: encoded(slice_of(40 + len(file.key))) for file in files}
    return making.ingest(list(files), lambda file: contents[file.key], rules or making.rules_of())


def test_copies_share_a_cluster_across_segments():
    data = encoded(slice_of())
    parts = [
        making.ingest([SourceFile(key, "", 1, "a")], lambda file: data, making.rules_of()) for key in ("a/1", "a/2")
    ]
    joined, out = making.join(parts, making.rules_of())
    table = schemas.from_parquet(out.content["scans/00000.parquet"])
    assert table.schema == schemas.SCANS
    assert len(set(table["image_id"].to_pylist())) == 2
    assert len(set(table["group_id"].to_pylist())) == 1
    assert (joined.counts["images"], joined.counts["distinct"], joined.counts["clusters"]) == (2, 1, 1)


def test_a_file_that_is_listed_twice_is_there_once():
    file = SourceFile("1.png", "s", 1)
    joined, out = making.join([segment(file), segment(file)], making.rules_of())
    assert joined.counts["images"] == 1
    refused = schemas.from_parquet(out.content["quarantine/00000.parquet"])
    assert refused["reason"].to_pylist() == ["listed_twice"]


def test_counts_tell_bad_files_from_bad_slices_and_harmless_ones():
    rows = [
        {"source_key": "1", "stamp": "", "frame": None, "reason": "blank", "detail": "d"},
        {"source_key": "2", "stamp": "", "frame": 3, "reason": "blank", "detail": "d"},
        {"source_key": "3", "stamp": "", "frame": None, "reason": "dicomdir", "detail": "d"},
        {"source_key": "4", "stamp": "", "frame": None, "reason": "suppressed", "detail": "d"},
    ]
    table = schemas.pa.Table.from_pylist(rows, schemas.QUARANTINE)
    assert bad_rows(table)["source_key"].to_pylist() == ["1"]


def test_nothing_usable_gives_empty_tables_and_the_first_reason():
    bad = making.ingest([SourceFile("x", "s", 1)], lambda file: b"words", making.rules_of())
    joined, out = making.join([bad], making.rules_of())
    assert (joined.counts["images"], joined.bad_files, joined.first_bad) == (0, 1, ("x", "not_an_image"))
    assert schemas.from_parquet(out.content["scans/00000.parquet"]).num_rows == 0
    assert np.array_equal(list(joined.counts["classes"]), [])
