"""An index that grew and shrank answers as one that is built from scratch on the same scans."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from tests.galleries import Line, Scan, index_config, vectors_of

from mrcg.index import sharded_index
from mrcg.index.layout import TRAINED, part_files
from mrcg.index.metadata import Where
from mrcg.storage.store import Store

pytestmark = pytest.mark.slow

DIM = 6
#: Cells that leave nothing out: then an approximate index is exact.
ALL = 10**6
SITES = (None, "north", "south")
QUERIES = vectors_of([Scan(number) for number in range(10**6, 10**6 + 7)], DIM).astype(np.float32)

seeds = st.integers(0, 10**6)
shares = st.floats(0.05, 0.6)


def needles(number):
    """A scan's vector as the files of an index have it: beside the index in half precision, in lists in single."""
    (vector,) = vectors_of([Scan(number)], DIM)
    return vector.tobytes(), vector.astype(np.float32).tobytes()


def contents(store, version):
    """The bytes of every part of an index, its tables of rows too."""
    artefact = store.artefact("indexes", version)
    return [artefact.read_bytes(name) for name in artefact.names() if name.startswith(("parts/", "rows/"))]


def said_of(index):
    """All that a gallery knows of its scans, in the order of its rows."""
    return index.gallery.table.drop_columns(["row"]).to_pylist()


class Changing(RuleBasedStateMachine):
    """A gallery that changes step by step, and its index that grows from the one before."""

    kind, start, shards = "flat", 30, 3
    checked = 0  # times that what grew was held against what was built from scratch

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = Store(str(self.folder / "store"))
        self.config = index_config(f"index.kind={self.kind}", f"index.shards={self.shards}", f"index.effort={ALL}")
        self.here: dict[int, Scan] = {}
        self.gone: set[int] = set()
        self.next = 0
        self.version = None

    def teardown(self):
        shutil.rmtree(self.folder)

    def chosen(self, among, share, seed):
        among = sorted(among)
        some = np.random.default_rng(seed).permutation(len(among))[: max(1, int(share * len(among)))]
        return [among[place] for place in some.tolist()]

    def new(self, count, site):
        for number in range(self.next, self.next + count):
            # A patient has a few scans, and the label is that of the patient.
            patient = f"p{number // 3}"
            self.here[number] = Scan(number, "ab"[number % 2], f"group {number // 3}", site, patient)
        self.next += count

    @initialize(more=st.integers(0, 20), site=st.sampled_from(SITES))
    def begin(self, more, site):
        self.new(self.start, None)
        self.new(more, site)
        self.grow()

    @rule(count=st.integers(1, 60), site=st.sampled_from((*SITES, "new")))
    def add(self, count, site):
        self.new(count, site)
        self.grow()

    @precondition(lambda self: len(self.here) > 20)
    @rule(share=shares, seed=seeds, purge=st.booleans())
    def delete(self, share, seed, purge):
        for number in self.chosen(self.here, share, seed):
            del self.here[number]
            self.gone.add(number)
        self.grow(purge)

    @precondition(lambda self: self.gone)
    @rule(share=shares, seed=seeds, site=st.sampled_from(SITES))
    def add_back(self, share, seed, site):
        for number in self.chosen(self.gone, share, seed):
            # It stands at the end now, as any new scan.
            self.here[number] = Scan(number, "c", f"group {number // 3}", site, f"p{number // 3}")
            self.gone.remove(number)
        self.grow()

    @rule(share=shares, seed=seeds, label=st.sampled_from(["a", "z", None]))
    def relabel(self, share, seed, label):
        for number in self.chosen(self.here, share, seed):
            self.here[number] = replace(self.here[number], label=label)
        self.grow()

    @rule(share=shares, seed=seeds, site=st.sampled_from((*SITES, "new")))
    def move(self, share, seed, site):
        for number in self.chosen(self.here, share, seed):
            self.here[number] = replace(self.here[number], site=site)
        self.grow()

    @rule()
    def purge(self):
        self.grow(purge=True)

    def grow(self, purge=False):
        scans = list(self.here.values())
        line = Line.of(self.store, scans, vectors_of(scans, DIM))
        grown, made = line.index(self.config, self.version, purge)
        fresh, anew = line.index(self.config)
        self.version = grown
        self.check_rows(made.facts, line.open(grown), scans)
        self.check_answers(line.open(grown), line.open(fresh))
        self.check_facts(made.facts, anew.facts)
        self.check_files(made.facts, purge)

    def check_rows(self, facts, index, scans):
        held = [part.rows[part.live] for part in index.parts]
        assert sorted(np.concatenate(held).tolist()) == list(range(len(scans)))
        assert [(one.rows, one.live) for one in facts.parts] == [
            (len(part), int(part.live.sum())) for part in index.parts
        ]
        assert (index.vectors(np.arange(len(scans))) == vectors_of(scans, DIM)).all()

    def check_answers(self, grown, fresh):
        assert said_of(grown) == said_of(fresh)
        filters = [None, *(fresh.gallery.mask(one) for one in (Where(site=("north",)), Where(label=("a", "c"))))]
        # Both ways to search through a filter, or around scans that are gone.
        for scan_below in (0, sharded_index.SCAN_BELOW):
            with mock.patch.object(sharded_index, "SCAN_BELOW", scan_below):
                for allowed in filters:
                    for k in (1, 15, 200):
                        mine = grown.search(QUERIES, k, allowed, ALL)
                        other = fresh.search(QUERIES, k, allowed, ALL)
                        assert (mine.rows_qk == other.rows_qk).all()
                        assert (mine.distances_qk == other.distances_qk).all()

    def check_facts(self, grown, fresh):
        type(self).checked += 1
        assert sum(part.live for part in grown.parts) == sum(part.live for part in fresh.parts) == len(self.here)
        assert len({part.name for part in grown.parts}) == len(grown.parts)
        assert grown.shape.kind == self.kind
        assert grown.recall == fresh.recall == 1.0
        limit = self.config.index.compact_above
        assert all(part.rows - part.live <= limit * part.rows for part in grown.parts)

    def check_files(self, facts, purge):
        files = contents(self.store, self.version)
        for number in self.gone:
            # Nobody who reads the tables learns that it was ever here.
            assert not any(Scan(number).image_id.encode() in data for data in files)
            assert not purge or not any(needle in data for data in files for needle in needles(number))
        assert not purge or all(part.rows == part.live for part in facts.parts)


class ChangingCells(Changing):
    """The same with cells, enough vectors for some in each list, and few shards."""

    kind, start, shards = "ivf_flat", 160, 2


@pytest.mark.parametrize("machine", [Changing, ChangingCells])
def test_an_index_that_changes_is_the_one_that_is_built_from_scratch(machine):
    # The machine asserts after each change, see its check_* methods; and it did come to that.
    machine.checked, few = 0, settings(max_examples=10, stateful_step_count=6)
    run_state_machine_as_test(machine, settings=few)
    assert machine.checked >= few.max_examples


@pytest.mark.parametrize("kind", ["flat", "ivf_flat"])
def test_what_is_deleted_lies_in_the_files_until_it_is_purged(kind, store):
    """The search for bytes above finds what is there to be found."""
    scans = [Scan(number) for number in range(200)]
    config = index_config(f"index.kind={kind}", "index.shards=2")
    base, _ = Line.of(store, scans, vectors_of(scans, DIM)).index(config)
    left = Line.of(store, scans[3:], vectors_of(scans[3:], DIM))
    (shrunk, made), (purged, clean) = left.index(config, base), left.index(config, base, purge=True)
    half, single = needles(1)
    assert sum(part.rows - part.live for part in made.facts.parts) == 3
    assert any(half in data for data in contents(store, shrunk))
    assert any(single in data for data in contents(store, shrunk)) == (kind == "ivf_flat")
    assert not any(needle in data for data in contents(store, purged) for needle in (half, single))
    assert all(part.rows == part.live for part in clean.facts.parts)


def test_a_cell_that_is_the_vector_of_a_purged_scan_is_learned_anew(store):
    """Training gives an outlier a cell for itself: then the cells hold its very vector."""
    scans = [Scan(number) for number in range(300)]
    vectors = vectors_of(scans, DIM)
    vectors[7] = 300
    single = vectors[7].astype(np.float32).tobytes()
    config = index_config("index.kind=ivf_flat", "index.shards=2", f"index.effort={ALL}")
    base, _ = Line.of(store, scans, vectors).index(config)
    left = np.arange(300) != 7
    line = Line.of(store, [scans[row] for row in np.flatnonzero(left)], vectors[left])
    (shrunk, _), (purged, anew) = line.index(config, base), line.index(config, base, purge=True)
    for version, held in ((base, True), (shrunk, True), (purged, False)):
        artefact = store.artefact("indexes", version)
        assert (single in artefact.read_bytes(TRAINED)) == held
        assert any(single in data for data in contents(store, version)) == held
    assert (anew.facts.trained_on, anew.facts.generation) == (299, 0)


def test_a_part_that_nothing_changed_is_not_written_again(store):
    scans = [Scan(number, site="north" if number % 2 else "south") for number in range(200)]
    config = index_config("index.kind=flat", "index.shards=2")
    base, _ = Line.of(store, scans, vectors_of(scans, DIM)).index(config)
    without = [one for one in scans if one.number not in (0, 2, 4)]
    version, made = Line.of(store, without, vectors_of(without, DIM)).index(config, base, purge=True)
    manifest = store.manifest("indexes", version)
    own = {one.name for one in manifest.files if one.folder is None}
    for part in made.facts.parts:
        # Only the shard that had them is filled anew.
        assert (part_files(part.name).vectors in own) == part.name.startswith("00001-001")
    assert [part.name for part in made.facts.parts] == ["00000-000-00", "00001-001-00"]
