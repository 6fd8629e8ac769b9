"""A corpus without somebody, made from an earlier one alone; and files of pixels without some of their rows."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import erasure_factories, factories
from tests.manifests import make_manifest

from mrcg.corpus.listing import file_digests, known_files
from mrcg.corpus.reader import Corpus, keep_rows, pixels_writer, read_quarantine, rows_in
from mrcg.corpus.sources import open_source, survey
from mrcg.errors import NotFoundError
from mrcg.imaging.samples import SampleFormat, write_samples
from mrcg.pipeline.plan import plan
from mrcg.pipeline.rebuild import rebuild
from mrcg.pipeline.update import purged_corpus
from mrcg.privacy.suppression import IMAGE, PATIENT, PIXELS, list_digest, suppress, token
from mrcg.storage import schemas
from mrcg.storage.attempts import begin

# Rows of a file --------------------------------------------------------------------------------------------------


def pixels_of(sizes, group):
    """A file of pixels and its images; ``sizes`` are the sides of each."""
    rng, sink = np.random.default_rng(len(sizes)), io.BytesIO()
    images = [rng.integers(0, 256, size, dtype=np.uint8) for size in sizes]
    with pixels_writer(sink) as writer:
        for start in range(0, len(images), group):
            some = images[start : start + group]
            rows = {
                "image_id": [f"{number:032x}" for number in range(start, start + len(some))],
                "height": [one.shape[0] for one in some],
                "width": [one.shape[1] for one in some],
                "pixels": [one.tobytes() for one in some],
            }
            writer.write_table(pa.table(rows, schema=schemas.IMAGES), row_group_size=len(some))
    return sink.getvalue(), images


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=30),
    st.integers(1, 8),
    st.data(),
)
def test_kept_rows_are_unchanged(sizes, group, data):
    whole, images = pixels_of(sizes, group)
    kept = sorted(data.draw(st.sets(st.integers(0, len(sizes) - 1), min_size=1)))
    written = keep_rows(whole, kept)
    parquet = pq.ParquetFile(pa.BufferReader(written))
    rows = parquet.read().to_pylist()
    assert [row["image_id"] for row in rows] == [f"{number:032x}" for number in kept]
    for row, number in zip(rows, kept, strict=True):
        grey = np.frombuffer(row["pixels"], np.uint8).reshape(row["height"], row["width"])
        assert np.array_equal(grey, images[number])
    assert parquet.schema_arrow == schemas.IMAGES
    sizes_of_groups = [parquet.metadata.row_group(n).num_rows for n in range(parquet.num_row_groups)]
    assert max(sizes_of_groups) <= group, "one image is still read with a few others"
    assert 0 not in sizes_of_groups
    assert keep_rows(whole, kept) == written, "the same rows give the same bytes"


def test_file_has_nothing_of_a_removed_row():
    whole, images = pixels_of([(16, 16)] * 12, 4)
    written = keep_rows(whole, [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11])
    assert f"{4:032x}".encode() in whole, "statistics name the first of each group"
    assert f"{4:032x}".encode() not in written
    values = b"".join(pq.read_table(pa.BufferReader(written))["pixels"].to_pylist())
    assert images[4].tobytes() not in values
    assert images[5].tobytes() in values


# A corpus ----------------------------------------------------------------------------------------------------------

SETTINGS = ("ingest.file_bytes=65536", *erasure_factories.PATIENTS)
JANE = "PH-glioma_tumor-0-1"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """DICOM of 16 patients, and a file that is no scan of anybody."""
    folder = tmp_path_factory.mktemp("patients") / "scans"
    write_samples(folder, 56, 1, SampleFormat.dicom)
    (folder / "glioma_tumor" / "notes.png").write_text("words")
    return folder


@pytest.fixture
def corpus(store, source):
    config = factories.tiny_config(*SETTINGS)
    step = plan(config, survey(open_source(str(source))), "none")[0]
    manifest = factories.publish_corpus(store, step, source, config, erasure_factories.KEY)
    return Corpus(store.artefact("corpus", manifest.version))


def purged(store, base, pseudonyms=erasure_factories.KEY):
    step = purged_corpus(base.artefact.manifest, list_digest(store))
    with begin(store, "corpus", step.version, step.inputs) as attempt:
        joined = rebuild(base.artefact, attempt, pseudonyms, purge=True)
        attempt.publish(make_manifest("corpus", step.version, step.settings, step.inputs, joined.counts, joined.files))
    return Corpus(store.artefact("corpus", step.version))


def rows_of(corpus):
    return {row["image_id"]: row for row in corpus.scans.to_pylist()}


def test_suppressed_scans_are_removed_and_others_unchanged(store, corpus):
    suppress(store, [token(erasure_factories.KEY, PATIENT, erasure_factories.pseudonym(JANE))])
    after = purged(store, corpus)
    before, now = rows_of(corpus), rows_of(after)
    gone = [one for one, row in before.items() if row["patient"] == erasure_factories.pseudonym(JANE)]
    assert len(gone) == 4
    assert list(now) == [one for one in before if one not in gone]
    for ident, row in now.items():
        assert {**row, "file_row": 0} == {**before[ident], "file_row": 0}
        assert np.array_equal(after.image(ident), corpus.image(ident))
    assert len(list(after.images(range(len(after))))) == len(after)


def test_files_without_suppressed_scans_are_shared_and_others_rewritten(store, corpus):
    suppress(store, [token(erasure_factories.KEY, PATIENT, erasure_factories.pseudonym(JANE))])
    theirs = {row["file"] for row in corpus.scans.to_pylist() if row["patient"] == erasure_factories.pseudonym(JANE)}
    after = purged(store, corpus)
    old = corpus.artefact.manifest.folder
    shared = {entry.name for entry in after.artefact.manifest.files if entry.folder == old}
    everything = set(corpus.artefact.names("images/"))
    assert theirs < everything
    assert shared == everything - theirs
    for name in after.artefact.names("images/"):
        assert rows_in(after.artefact, name) == after.scans["file"].to_pylist().count(name)


def test_file_with_only_suppressed_scans_is_dropped(store, corpus):
    name = corpus.scans["file"][0].as_py()
    mine = [row for row in corpus.scans.to_pylist() if row["file"] == name]
    suppress(store, [token(erasure_factories.KEY, IMAGE, row["image_id"]) for row in mine])
    assert name not in purged(store, corpus).artefact.names()


def test_images_are_removed_by_id_and_copies_by_pixels(store, corpus):
    one, other = corpus.scans.to_pylist()[3], corpus.scans.to_pylist()[20]
    suppress(
        store,
        [
            token(erasure_factories.KEY, IMAGE, one["image_id"]),
            token(erasure_factories.KEY, PIXELS, other["pixel_hash"]),
        ],
    )
    assert set(rows_of(corpus)) - set(rows_of(purged(store, corpus))) == {one["image_id"], other["image_id"]}


def test_another_key_removes_nothing(store, corpus):
    suppress(store, [token(erasure_factories.KEY, PATIENT, erasure_factories.pseudonym(JANE))])
    assert len(purged(store, corpus, None)) == len(corpus)


def test_quarantine_rows_of_suppressed_scans_are_removed(store, corpus):
    gone = corpus.scans.to_pylist()[0]
    refused = pa.Table.from_pylist(
        [
            {"source_key": gone["source_key"], "stamp": gone["stamp"], "frame": 7, "reason": "blank", "detail": "d"},
            *read_quarantine(corpus.artefact).to_pylist(),
        ],
        schemas.QUARANTINE,
    )
    assert refused.num_rows == 2
    manifest = corpus.artefact.manifest
    path = corpus.artefact.relative("quarantine/00000.parquet")
    store.write_bytes(path, schemas.to_parquet(refused))
    entries = [
        entry if not entry.name.startswith("quarantine/") else entry.of(entry.name, store.read_bytes(path))
        for entry in manifest.files
    ]
    told = manifest.model_copy(update={"files": tuple(entries)})
    store.write_bytes(f"corpus/{manifest.version}/manifest.json", told.to_bytes())
    suppress(store, [token(erasure_factories.KEY, PATIENT, gone["patient"])])
    after = purged(store, Corpus(store.artefact("corpus", manifest.version)))
    assert [row["reason"] for row in read_quarantine(after.artefact).to_pylist()] == ["not_an_image"]
    assert after.artefact.manifest.counts.reasons == {"not_an_image": 1}


def test_counts_are_new_and_the_source_is_kept(store, corpus):
    suppress(store, [token(erasure_factories.KEY, PATIENT, erasure_factories.pseudonym(JANE))])
    before, after = corpus.artefact.manifest, purged(store, corpus).artefact.manifest
    assert (before.counts.patients, after.counts.patients) == (16, 15)
    assert after.counts.images == before.counts.images - 4
    assert after.counts.files == before.counts.files
    assert after.counts.generation == before.counts.generation + 1
    assert after.settings["policy"] == before.settings["policy"]


def test_next_ingestion_does_not_know_the_files_of_removed_scans(store, corpus):
    """They must not be known, because a known file has rows that name its patient."""
    suppress(store, [token(erasure_factories.KEY, PATIENT, erasure_factories.pseudonym(JANE))])
    after = purged(store, corpus)
    gone = [row for row in corpus.scans.to_pylist() if row["patient"] == erasure_factories.pseudonym(JANE)]
    theirs = file_digests([row["source_key"] for row in gone], [row["stamp"] for row in gone])
    assert np.isin(theirs, known_files(corpus.artefact)).all()
    assert not np.isin(theirs, known_files(after.artefact)).any()
    assert len(known_files(after.artefact)) == len(known_files(corpus.artefact)) - 4


def test_unlisted_pixels_are_removed_as_well(store, corpus):
    """The scan left its source: no row names it, but its pixel file was not rewritten."""
    left = corpus.scans.to_pylist()[5]
    config = factories.tiny_config(*SETTINGS)
    stay = known_files(corpus.artefact)
    stay = stay[~np.isin(stay, file_digests([left["source_key"]], [left["stamp"]]))]
    joined, out = factories.join(
        [], factories.rules_of(config.ingest, erasure_factories.KEY, generation=1), corpus.artefact, stay
    )
    with begin(store, "corpus", "0" * 12) as attempt:
        files = [
            entry if entry.folder else attempt.write(entry.name, out.content[entry.name]) for entry in joined.files
        ]
        settings = corpus.artefact.manifest.settings
        attempt.publish(make_manifest("corpus", "0" * 12, settings, {}, joined.counts, files))
    grown = Corpus(store.artefact("corpus", "0" * 12))
    assert left["image_id"] not in rows_of(grown)
    assert rows_in(grown.artefact, left["file"]) > grown.scans["file"].to_pylist().count(left["file"])
    after = purged(store, grown)
    assert list(rows_of(after)) == list(rows_of(grown))
    assert rows_in(after.artefact, left["file"]) == after.scans["file"].to_pylist().count(left["file"])
    for ident in rows_of(after):
        assert np.array_equal(after.image(ident), corpus.image(ident))


def test_corpus_with_only_suppressed_scans_becomes_empty(store, corpus):
    patients = set(corpus.scans["patient"].to_pylist())
    suppress(store, [token(erasure_factories.KEY, PATIENT, one) for one in patients])
    after = purged(store, corpus)
    assert (len(after), after.artefact.names("images/")) == (0, [])
    assert after.artefact.manifest.counts.classes == {}


def test_reader_of_the_removed_corpus_gets_an_error(store, corpus):
    ident = corpus.scans["image_id"][9].as_py()
    assert corpus.image(ident).shape == (128, 128)
    store.remove(corpus.artefact.manifest.folder)
    with pytest.raises(
        NotFoundError, match=f"the pixels of {ident} were deleted with an old release; serve the current release"
    ):
        corpus.image(ident)
