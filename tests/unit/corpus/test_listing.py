import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import factories

from mrcg.corpus import listing
from mrcg.corpus.listing import (
    FILES_PER_PAGE,
    Plan,
    cut_segments,
    file_digests,
    known_files,
    pages_in,
    read_pages,
    write_listing,
)
from mrcg.corpus.sources import SourceFile, survey
from mrcg.errors import IntegrityError
from mrcg.imaging.samples import write_samples
from mrcg.pipeline.plan import plan
from mrcg.privacy.pseudonyms import Pseudonyms
from mrcg.storage import schemas
from mrcg.storage.filesystem import HashingFile


class Walk:
    """A source that is a list."""

    location = "somewhere"
    declares_patients = False

    def __init__(self, files):
        self.files = files

    def walk(self):
        return iter(self.files)

    def read(self, file):
        raise AssertionError("a listing reads no file")


def files(count, stamp="s"):
    return [SourceFile(f"{n:05d}.png", stamp, n) for n in range(count)]


def written(source, known=()):
    buffer = io.BytesIO()
    known = np.sort(np.array(known, dtype=np.uint64))
    found = write_listing(source, len(source.files), factories.rules_of(), known, HashingFile(buffer))
    return found, pq.ParquetFile(pa.BufferReader(buffer.getvalue()))


def keys(parquet, rules=None):
    return [file.key for file in pages_in(parquet, range(parquet.num_row_groups), rules or factories.rules_of())]


def test_a_listing_has_every_file_once_in_small_pages():
    source = Walk(files(3 * FILES_PER_PAGE + 5))
    found, parquet = written(source)
    assert (found.files, found.pages, parquet.num_row_groups) == (3 * FILES_PER_PAGE + 5, 4, 4)
    assert keys(parquet) == [file.key for file in source.files]
    assert found.source == survey(source)
    assert len(found.kept) == 0
    assert 1 < len(found.samples) <= listing.SAMPLE_FILES


@given(st.sets(st.integers(0, 199)), st.integers(0, 3))
def test_only_new_or_changed_files_are_listed(changed, gone):
    before = files(200)
    known = file_digests((f.key for f in before), (f.stamp for f in before))
    now = [SourceFile(f.key, "other" if n in changed else "s", n) for n, f in enumerate(before)][gone:]
    found, parquet = written(Walk(now), known)
    assert keys(parquet) == [f.key for f in now if f.stamp == "other"]
    unchanged = [f for f in now if f.stamp == "s"]
    assert set(found.kept.tolist()) == set(
        file_digests((f.key for f in unchanged), (f.stamp for f in unchanged)).tolist()
    )


@given(st.integers(0, 500), st.floats(0, 1e7), st.integers(2**16, 2**30))
def test_segments_cover_all_pages_in_order(pages, size, wanted):
    segments = cut_segments(pages, pages * FILES_PER_PAGE, size, wanted)
    assert [page for first, last in segments for page in range(first, last)] == list(range(pages))
    assert all(last > first for first, last in segments)
    if pages >= listing.MIN_SEGMENTS:
        assert len(segments) >= listing.MIN_SEGMENTS


def test_segments_have_about_the_target_size():
    # A million slices of 130 KB in files of 192 MB.
    segments = cut_segments(10**6 // FILES_PER_PAGE, 10**6, 130e3, 192 * 2**20)
    sizes = [(last - first) * FILES_PER_PAGE * 130e3 / 2**20 for first, last in segments]
    assert min(sizes) > 128
    assert max(sizes) < 256


def test_a_plan_round_trips_through_json():
    import json

    plan = Plan(5, [(0, 2), (2, 3)])
    assert Plan.from_json(json.loads(plan.to_bytes())) == plan


def test_known_files_exclude_transient_failures(store, tmp_path):
    folder = tmp_path / "scans"
    write_samples(folder, 4, seed=1)
    (folder / "words.png").write_text("words")
    (folder / "late.png").symlink_to(folder / "not-there-yet.png")
    config = factories.tiny_config()
    from mrcg.corpus.sources import open_source

    source = open_source(str(folder))
    step = plan(config, survey(source), "none")[0]
    factories.publish_corpus(store, step, folder, config)
    known = known_files(store.artefact("corpus", step.version))
    there = [file for file in source.walk() if file.key != "late.png"]
    assert set(known.tolist()) == set(file_digests((f.key for f in there), (f.stamp for f in there)).tolist())


def test_a_range_of_pages_is_read(store):
    buffer = io.BytesIO()
    write_listing(Walk(files(200)), 200, factories.rules_of(), np.empty(0, np.uint64), HashingFile(buffer))
    store.write_bytes("listing.parquet", buffer.getvalue())
    assert [file.size for file in read_pages(store, "listing.parquet", range(1, 3), factories.rules_of())] == list(
        range(FILES_PER_PAGE, 3 * FILES_PER_PAGE)
    )


def test_with_a_key_pages_are_encrypted_and_readable_again():
    rules = factories.rules_of(pseudonyms=Pseudonyms(bytes(32)))
    source, buffer = Walk([SourceFile("JANE-DOE.dcm", "s", 1, patient="DOE^JANE")] * 3), io.BytesIO()
    write_listing(source, 3, rules, np.empty(0, np.uint64), HashingFile(buffer))
    parquet = pq.ParquetFile(pa.BufferReader(buffer.getvalue()))
    assert all(b"JANE" not in data and b"PAR1" not in data for data in parquet.read()["page"].to_pylist())
    assert list(pages_in(parquet, [0], rules)) == source.files


def test_a_page_that_was_changed_or_moved_is_refused():
    rules = factories.rules_of(pseudonyms=Pseudonyms(bytes(32)))
    buffer = io.BytesIO()
    write_listing(Walk(files(200)), 200, rules, np.empty(0, np.uint64), HashingFile(buffer))
    sealed = pq.ParquetFile(pa.BufferReader(buffer.getvalue())).read()["page"].to_pylist()

    def read(pages):
        changed = io.BytesIO()
        with pq.ParquetWriter(changed, schemas.PAGES) as writer:
            for page in pages:
                writer.write_table(pa.table({"page": [page]}, schema=schemas.PAGES))
        return list(pages_in(pq.ParquetFile(pa.BufferReader(changed.getvalue())), range(len(pages)), rules))

    assert len(read(sealed)) == 200
    flipped = bytearray(sealed[1])
    flipped[40] ^= 1
    for pages, number in (
        ([sealed[0], bytes(flipped), *sealed[2:]], 1),
        ([sealed[1], sealed[0], *sealed[2:]], 0),
        ([b"short", *sealed[1:]], 0),
    ):
        with pytest.raises(IntegrityError, match=f"page {number} of the listing was changed"):
            read(pages)
