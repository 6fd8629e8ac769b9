import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import galleries
from tests.galleries import Line, Scan, scans_table, vectors_of

from mrcg.corpus.embeddings import EmbeddingRows, embedding_file, files_of, reusable_file
from mrcg.errors import IntegrityError
from mrcg.storage import schemas
from mrcg.storage.store import Store

COUNT, DIM, PER_FILE = 57, 5, 10
SCANS = [Scan(number) for number in range(COUNT)]
VECTORS = vectors_of(SCANS, DIM)

some_rows = st.sets(st.integers(0, COUNT - 1)).map(sorted)


def embeddings(store):
    """Six files of embeddings, the last one not full; and the embeddings by row."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(galleries, "PER_FILE", PER_FILE)
        artefact = store.artefact("embeddings", Line.of(store, SCANS, VECTORS).embeddings)
        return artefact, EmbeddingRows(artefact, files_of(scans_table(SCANS)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return embeddings(Store(str(tmp_path_factory.mktemp("embeddings") / "store")))


def name(number):
    return f"embeddings/g000-{number:05d}-00.arrow"


def ids(rows):
    return pa.array([SCANS[row].image_id for row in rows], pa.string())


def scans_in(*files):
    return pa.table({"file": pa.array([f"images/{one}.parquet" for one in files], pa.string())})


def test_files_are_in_row_order():
    found = files_of(scans_in("b", "b", "a", "c", "c", "c"))
    assert [(one.name, one.rows) for one in found] == [
        ("embeddings/b.arrow", 2),
        ("embeddings/a.arrow", 1),
        ("embeddings/c.arrow", 3),
    ]
    assert files_of(scans_in()) == ()
    assert embedding_file("images/g001-00002-03.parquet") == "embeddings/g001-00002-03.arrow"


def test_files_whose_rows_are_not_consecutive_are_refused():
    with pytest.raises(AssertionError, match="are not consecutive"):
        files_of(scans_in("a", "b", "a"))


@given(some_rows, st.integers(1, 70))
def test_blocks_are_the_vectors_of_the_rows(made, rows, size):
    blocks = [block.copy() for block in made[1].blocks(np.array(rows, dtype=np.int64), size)]
    assert all(1 <= len(block) <= size for block in blocks)
    assert (np.concatenate([np.empty((0, DIM), np.float16), *blocks]) == VECTORS[rows]).all()
    assert {block.dtype for block in blocks} <= {np.dtype(np.float16)}


@given(st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=100))
def test_rows_are_taken_in_any_order_and_with_repeats(made, rows):
    assert (made[1].take(np.array(rows)) == VECTORS[rows]).all()


def test_all_rows_are_returned(made):
    assert len(made[1]) == COUNT
    assert (made[1].take(np.arange(COUNT)) == VECTORS).all()


def test_consecutive_rows_are_not_copied(made):
    (whole,) = made[1].blocks(np.arange(20, 30), 100)
    (some,) = made[1].blocks(np.arange(23, 27), 100)
    (apart,) = made[1].blocks(np.array([23, 26]), 100)
    assert np.shares_memory(whole, some)
    assert not np.shares_memory(whole, apart)


def test_only_requested_files_are_read_and_each_is_checked(store):
    artefact, rows = embeddings(store)
    damaged = store.path(artefact.relative(name(2)))
    with open(damaged, "r+b") as file:
        file.write(b"\0")
    assert (rows.take(np.array([5, 50])) == VECTORS[[5, 50]]).all()
    with pytest.raises(IntegrityError, match="does not match its manifest"):
        rows.take(np.array([25]))


def test_a_file_with_another_number_of_rows_than_the_corpus_is_refused(made):
    files = files_of(scans_table(SCANS[:10]).select(["file"]).slice(0, 9))
    with pytest.raises(AssertionError, match="does not have as many rows as the corpus expects"):
        EmbeddingRows(made[0], files).take(np.array([3]))


def test_an_unchanged_file_is_shared(made):
    entry = reusable_file(made[0], name(3), ids(range(30, 40)))
    assert entry == made[0].reference(name(3))
    assert entry.folder == made[0].manifest.folder


@pytest.mark.parametrize("rows", [[30, 31, 39], [39, 30], [35], []])
def test_the_remaining_rows_of_a_file_are_reused(made, rows):
    data = reusable_file(made[0], name(3), ids(rows))
    table = schemas.from_ipc(data)
    assert table.schema == schemas.embeddings(DIM)
    assert table["image_id"].to_pylist() == ids(rows).to_pylist()
    assert table["embedding"].to_pylist() == VECTORS[rows].tolist()


def test_a_file_with_new_rows_is_not_reusable(made):
    assert reusable_file(made[0], name(9), ids([30])) is None
    # A single scan of another file, or an unknown one, is enough.
    assert reusable_file(made[0], name(3), ids([30, 45])) is None
    assert reusable_file(made[0], name(3), pa.array([SCANS[30].image_id, "f" * 32])) is None
