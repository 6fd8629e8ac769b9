from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests import galleries
from tests.galleries import Line, Scan, index_config, vectors_of
from tests.references import shard_of

from mrcg.errors import IntegrityError, TrainingError
from mrcg.execution.executor import LocalExecutor
from mrcg.hashing import seed_of
from mrcg.index.distances import exact_search, recall_at
from mrcg.index.layout import FACTS, TRAINED, part_files
from mrcg.index.sharded_index import read_facts
from mrcg.index_build.recall import DEPTH
from mrcg.index_build.sizing import KINDS
from mrcg.storage.store import Store

#: Vectors and dimensions with which each kind is not replaced by flat: PQ needs 39 vectors for each of its 256 codes.
SIZES = {
    "flat": (1500, 16),
    "hnsw": (1500, 16),
    "ivf_flat": (3000, 16),
    "ivf_sq": (3000, 16),
    "opq_ivf_pq": (10_000, 8),
}


def scans_of(count, first=0, **facts):
    return [Scan(number, **facts) for number in range(first, first + count)]


def gallery(store, scans, dim=16):
    return Line.of(store, scans, vectors_of(scans, dim))


def files(store, version):
    """Name and content hash of every file of an index."""
    return {file.name: file.sha256 for file in store.manifest("indexes", version).files}


def on_disk(store, version, name):
    artefact = store.artefact("indexes", version)
    return Path(store.path(artefact.relative(name)))


def identity(path):
    """Identity of a file: writing it again changes it, even with the same bytes."""
    return path.stat().st_ino, path.stat().st_mtime_ns


@pytest.fixture(scope="module", params=KINDS)
def built(request, tmp_path_factory):
    """An index of each kind over three shards: its gallery, its settings, its version and its facts."""
    count, dim = SIZES[request.param]
    line = gallery(Store(str(tmp_path_factory.mktemp("built") / "store")), scans_of(count), dim)
    config = index_config(f"index.kind={request.param}", "index.shards=3", "index.recall_sample=100")
    version, made = line.index(config)
    return line, config, version, made.facts


def test_every_kind_reaches_its_min_recall(built):
    line, config, version, facts = built
    assert facts.shape.kind == config.index.kind
    assert facts.recall >= config.index.min_recall
    index = line.open(version)
    queries = vectors_of(scans_of(100, first=10**6), facts.shape.dim).astype(np.float32)
    exact = exact_search(queries, index.vectors(np.arange(len(index))), DEPTH)
    assert recall_at(index.search(queries, DEPTH).rows_qk, exact) > config.index.min_recall - 0.02


def test_the_recorded_recall_equals_that_of_a_search(built):
    line, config, version, facts = built
    index = line.open(version)
    sample = np.sort(np.random.default_rng(seed_of(config.seed, "recall")).permutation(len(index))[:100])
    queries = index.vectors(sample).astype(np.float32)
    found = recall_at(index.search(queries, DEPTH).rows_qk, index.exact(queries, DEPTH).rows_qk)
    assert found == pytest.approx(facts.recall)
    assert (facts.measured, facts.trained_on) == (len(index), len(index))
    assert index.nprobe_or_ef == facts.nprobe_or_ef


def test_every_scan_is_in_exactly_one_row_of_its_shard(built):
    line, _, version, facts = built
    index = line.open(version)
    stored = vectors_of(scans_of(len(index)), facts.shape.dim)
    assert sorted(np.concatenate([part.rows for part in index.parts]).tolist()) == list(range(len(index)))
    for part, part_facts in zip(index.parts, facts.parts, strict=True):
        assert (part_facts.rows, part_facts.live) == (len(part), len(part))
        assert (np.diff(part.rows) > 0).all()
        assert (part.vectors_nd == stored[part.rows]).all()
        assert {shard_of(None, image, facts.sites, 3) for image in part.table["image_id"].to_pylist()} == {
            part_facts.shard
        }


def test_the_files_are_those_of_the_layout_including_the_facts(built):
    line, _, version, facts = built
    named = {FACTS} | ({TRAINED} if facts.shape.trained else set())
    for part in facts.parts:
        names = part_files(part.name)
        named |= {names.vectors, names.rows} | (set() if facts.shape.kind == "flat" else {names.index})
    assert set(files(line.store, version)) == named
    assert read_facts(line.store.artefact("indexes", version)) == facts


def test_a_file_changed_after_publication_is_not_opened(built):
    line, _, version, facts = built
    for name in (part_files(facts.parts[0].name).vectors, part_files(facts.parts[0].name).rows):
        path = on_disk(line.store, version, name)
        data = path.read_bytes()
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        with pytest.raises(IntegrityError, match="does not match its manifest"):
            line.open(version)
        path.write_bytes(data)
    line.open(version)


@pytest.mark.parametrize("kind", ["hnsw", "ivf_sq"])
def test_the_same_scans_give_the_same_bytes(kind, tmp_path):
    config = index_config(f"index.kind={kind}", "index.shards=2")
    made = []
    for name in ("one", "other"):
        store = Store(str(tmp_path / name))
        version, _ = gallery(store, scans_of(1000), 8).index(config)
        made.append((version, files(store, version)))
    assert made[0] == made[1]


def test_another_seed_trains_other_cells(store):
    line = gallery(store, scans_of(1000), 8)
    one, other = (line.index(index_config("index.kind=ivf_flat", f"seed={seed}"))[0] for seed in (1, 2))
    assert files(store, one)[TRAINED] != files(store, other)[TRAINED]


def test_an_unreachable_recall_is_an_error_that_names_the_way_out(store, monkeypatch):
    monkeypatch.setattr("mrcg.index_build.recall.TRIES", 2)
    line = gallery(store, scans_of(3000))
    with pytest.raises(
        TrainingError,
        match=r"recall@50 of ivf_flat is 0\.\d+ at nprobe 2, below index.min_recall 0.99: choose another index.kind",
    ):
        line.index(index_config("index.kind=ivf_flat", "index.effort=1", "index.min_recall=0.99"))
    assert store.versions("indexes") == []


def test_completion_by_scan_does_not_count_towards_recall(store):
    """A shard whose cells have fewer vectors than requested is completed by a scan; recall must not count that."""
    line = gallery(store, scans_of(3000))
    config = index_config("index.kind=ivf_flat", "index.shards=8", "index.effort=1", "index.min_recall=0.9")
    version, made = line.index(config)
    assert made.facts.nprobe_or_ef > 1
    index = line.open(version)
    queries = index.vectors(np.arange(0, 3000, 20)).astype(np.float32)
    exact = index.exact(queries, DEPTH)
    assert recall_at(index.search(queries, DEPTH).rows_qk, exact.rows_qk) > 0.85
    assert recall_at(index.search(queries, DEPTH, nprobe_or_ef=1).rows_qk, exact.rows_qk) < 0.85


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_sq"])
def test_many_copies_of_one_scan_do_not_lower_recall(kind, store):
    """Blank slices are identical and more than the candidates: any of them is as near as the others."""
    scans, vectors = scans_of(2000), vectors_of(scans_of(2000), 16)
    vectors[np.random.default_rng(1).permutation(2000)[:400]] = vectors[5]
    config = index_config(f"index.kind={kind}", "index.shards=3", "index.min_recall=0.97")
    _, made = Line.of(store, scans, vectors).index(config)
    assert made.facts.recall >= 0.97


def test_deleted_scans_do_not_inflate_recall(store, monkeypatch):
    """A small shard with deleted scans would be scanned, the full index is not."""
    monkeypatch.setattr("mrcg.index.sharded_index.SCAN_BELOW", 1000)
    config = index_config("index.kind=ivf_flat", "index.shards=3", "index.min_recall=0.9")
    base, before = gallery(store, scans_of(3000)).index(config)
    remaining = [scan for scan in scans_of(3000) if scan.number % 8]
    _, made = gallery(store, remaining).index(config, base)
    assert made.facts.measured == len(remaining)
    assert before.facts.recall < 1
    assert made.facts.recall < 1


def test_recall_is_measured_again_only_after_a_tenth_has_changed(store):
    config = index_config("index.kind=ivf_flat", "index.shards=2")
    base, first = gallery(store, scans_of(1000), 8).index(config)
    few, little = gallery(store, scans_of(1050), 8).index(config, base)
    assert (little.facts.measured, little.facts.recall) == (1000, first.facts.recall)
    _, much = gallery(store, scans_of(1101), 8).index(config, few)
    assert much.facts.measured == 1101


def test_unchanged_files_are_shared_with_the_version_that_wrote_them(store):
    config = index_config("index.kind=ivf_flat", "index.shards=2")
    base, first = gallery(store, scans_of(1000), 8).index(config)
    grown, second = gallery(store, scans_of(1040), 8).index(config, base)
    assert second.facts.generation == 1
    assert second.facts.parts[:2] == first.facts.parts
    own = {file.name for file in store.manifest("indexes", grown).files if file.folder is None}
    new = {name for part in second.facts.parts[2:] for name in vars(part_files(part.name)).values()}
    assert own == new | {FACTS}
    assert {part.shard for part in second.facts.parts[2:]} == {0, 1}
    assert sum(part.live for part in second.facts.parts) == 1040


def test_an_index_is_trained_again_when_the_gallery_has_doubled(store):
    config = index_config("index.kind=ivf_flat", "index.shards=2")
    base, first = gallery(store, scans_of(500), 8).index(config)
    doubled, second = gallery(store, scans_of(1001), 8).index(config, base)
    assert (second.facts.trained_on, second.facts.generation) == (1001, 0)
    assert second.facts.shape.lists > first.facts.shape.lists
    assert all(file.folder is None for file in store.manifest("indexes", doubled).files)


def test_a_large_shard_is_built_in_parts_and_searched_as_one(store):
    line = gallery(store, scans_of(5000), 64)
    whole, one = line.index(index_config("index.kind=flat", "index.shards=1"))
    cut, several = line.index(index_config("index.kind=flat", "index.shards=1", f"index.part_bytes={2**20}"))
    assert [part.rows for part in one.facts.parts] == [5000]
    assert [part.rows for part in several.facts.parts] == [2500, 2500]
    queries = vectors_of(scans_of(10, first=10**6), 64)
    first, second = line.open(whole).search(queries, 20), line.open(cut).search(queries, 20)
    assert (first.rows_qk == second.rows_qk).all()
    assert (first.distances_qk == second.distances_qk).all()


def test_a_gallery_too_small_for_cells_is_flat(store):
    version, made = gallery(store, scans_of(60), 8).index(index_config("index.kind=ivf_sq", "index.shards=2"))
    assert (made.facts.shape.kind, made.facts.recall) == ("flat", 1.0)
    assert TRAINED not in files(store, version)


SITES = ["north"] * 6 + ["south"] * 3 + [None]


def test_shards_are_keyed_by_site(store):
    scans = [Scan(number, site=SITES[number % 10]) for number in range(1000)]
    version, made = gallery(store, scans, 8).index(index_config("index.kind=flat", "index.shards=5"))
    held = {}
    for part, facts in zip(gallery(store, scans, 8).open(version).parts, made.facts.parts, strict=True):
        held.setdefault(facts.shard, Counter()).update(part.table["site"].to_pylist())
    owned = {site: {shard for shard, sites in held.items() if site in sites} for site in ("north", "south", None)}
    # The tenth without a site is too small for a shard of its own.
    assert owned == {None: {0}, "north": {0, 1, 2}, "south": {3, 4}}
    assert sum(held.values(), Counter()) == {"north": 600, "south": 300, None: 100}


def test_a_site_added_later_is_spread_over_all_shards(store):
    scans = [Scan(number, site="north") for number in range(600)]
    config = index_config("index.kind=flat", "index.shards=3")
    base, _ = gallery(store, scans, 8).index(config)
    _, made = gallery(store, scans + scans_of(90, first=600, site="west"), 8).index(config, base)
    assert "west" not in made.facts.sites
    assert {part.shard for part in made.facts.parts if part.name.split("-")[1] == "001"} == {0, 1, 2}


class KilledError(Exception):
    pass


class Dying(LocalExecutor):
    """Runs a number of tasks and dies at the next one."""

    def __init__(self, tasks):
        self.left = tasks

    def map(self, work, items, bytes_each=0, gpus_each=0):
        for item in items:
            if not self.left:
                raise KilledError
            self.left -= 1
            yield work(item)


#: A plan, a training, three parts built, three shards measured.
TASKS = 8
KILLED = index_config("index.kind=ivf_flat", "index.shards=3")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    store = Store(str(tmp_path_factory.mktemp("undisturbed") / "store"))
    return store, *gallery(store, scans_of(1000), 8).index(KILLED)


@pytest.mark.parametrize("tasks", range(TASKS))
def test_a_killed_build_resumes_without_repeating_work(tasks, undisturbed, store, monkeypatch):
    other, version, made = undisturbed
    line = gallery(store, scans_of(1000), 8)
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(galleries, "LocalExecutor", lambda: Dying(tasks))
        line.index(KILLED)
    assert store.versions("indexes") == []
    (attempt,) = Path(store.path("indexes/_attempts")).iterdir()
    done = {path.name: identity(path) for path in attempt.glob("output/**/*.faiss")}
    # The plan writes none, nor do the tasks that measure recall.
    assert len(done) == min(max(0, tasks - 1), 4)
    again, remade = line.index(KILLED)
    assert (again, remade.facts, remade.files) == (version, made.facts, made.files)
    for name in files(store, version):
        path = on_disk(store, version, name)
        assert path.read_bytes() == on_disk(other, version, name).read_bytes()
        assert path.name not in done or identity(path) == done[path.name]
    assert store.listdir("indexes/_attempts") == []


def test_a_killed_update_resumes(tmp_path, monkeypatch):
    versions = []
    for tasks in (None, 2):
        store = Store(str(tmp_path / str(tasks)))
        base, _ = gallery(store, scans_of(1000), 8).index(KILLED)
        grown = gallery(store, [*scans_of(900), *scans_of(200, first=1000)], 8)
        if tasks:
            with monkeypatch.context() as patch, pytest.raises(KilledError):
                patch.setattr(galleries, "LocalExecutor", lambda: Dying(2))
                grown.index(KILLED, base, purge=True)
        version, _ = grown.index(KILLED, base, purge=True)
        versions.append((version, files(store, version)))
    assert versions[0] == versions[1]
