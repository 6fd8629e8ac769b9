from tests.making import bomb
from tests.unit.imaging.test_decode import encoded, slice_of

from mrcg.config import IngestSettings
from mrcg.ingest import ingest_chunk, join_chunks
from mrcg.source import SourceFile


def test_bad_files_are_quarantined_with_a_reason_and_good_ones_kept():
    contents = {
        "a/bomb.png": bomb(20_000),
        "a/empty.png": b"",
        "a/good.png": encoded(slice_of()),
        "a/good2.png": encoded(slice_of(41)),
        "a/text.png": b"not pixels",
        "a/tiny.png": encoded(slice_of(1)),
        "a/truncated.jpg": encoded(slice_of(), "JPEG")[:-300],
    }

    def read(key):
        if key == "a/locked.png":
            raise PermissionError(13, "Permission denied")
        return contents[key]

    files = [SourceFile(key, "", "a", None) for key in sorted([*contents, "a/locked.png"])]
    chunk = ingest_chunk(files, read, IngestSettings(), "images/00000.parquet")
    assert chunk.scans["source_key"].to_pylist() == ["a/good.png", "a/good2.png"]
    assert chunk.images["image_id"].to_pylist() == chunk.scans["image_id"].to_pylist()
    assert {row["source_key"]: row["reason"] for row in chunk.quarantine.to_pylist()} == {
        "a/bomb.png": "too_many_pixels",
        "a/empty.png": "empty",
        "a/locked.png": "unreadable",
        "a/text.png": "not_an_image",
        "a/tiny.png": "too_small",
        "a/truncated.jpg": "truncated",
    }
    assert all(row["detail"] for row in chunk.quarantine.to_pylist())


def test_copies_share_a_group_across_chunks():
    data = encoded(slice_of())
    chunks = [
        ingest_chunk([SourceFile(key, "", "a", None)], lambda key: data, IngestSettings(), "f")
        for key in ("a/1", "a/2")
    ]
    table = join_chunks([chunk.scans for chunk in chunks], IngestSettings())
    assert len(set(table["image_id"].to_pylist())) == 2
    assert len(set(table["group_id"].to_pylist())) == 1
    assert len(set(table["pixel_hash"].to_pylist())) == 1
