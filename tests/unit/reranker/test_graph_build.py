from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests.galleries import Line, Scan, index_config, published, scans_table, vectors_of
from tests.manifests import make_manifest
from tests.references import exact_distances

from mrcg.corpus.splits import SPLITS, Fold, Split, make_splits
from mrcg.execution.executor import LocalExecutor, silent
from mrcg.reranker import graph_build
from mrcg.reranker.graph_build import GraphWork, build_graphs, collect_queries
from mrcg.reranker.graph_table import read_graphs
from mrcg.storage import schemas
from mrcg.storage.attempts import begin
from mrcg.storage.store import Store

DIM, SHARDS, BLOCK = 4, 3, 29
#: Vectors form seven clusters. A group is larger than some neighbour lists, and lies in a single cluster and shard.
SCANS = [
    Scan(number, (None, "a", "b", "c")[number % 9 % 4], f"group {number % 21}", f"site {number % 7 % 3}")
    for number in range(231)
]
VECTORS = vectors_of(SCANS, DIM)
LABELS = [scan.label for scan in SCANS]
GROUPS = np.array([scan.group for scan in SCANS])


@pytest.fixture(scope="module", params=["flat", "ivf_flat"])
def gallery(request, tmp_path_factory):
    """Corpus, splits, embeddings and an index with exhaustive search."""
    store = Store(str(tmp_path_factory.mktemp("graphs") / "store"))
    config = index_config(
        f"index.kind={request.param}", f"index.shards={SHARDS}", "index.effort=1000000", "split.held_out_fraction=0.2"
    )
    line = Line.of(store, SCANS, VECTORS)
    table = schemas.to_parquet(make_splits(scans_table(SCANS), config.split, config.seed))
    splits = published(store, "splits", {}, {"corpus": line.corpus}, {SPLITS: table})
    return store, config, (line.corpus, splits, line.embeddings, line.index(config)[0])


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(graph_build, "BLOCK", BLOCK)


def work_of(gallery, attempt, neighbours=6, fold=None, parts=None):
    store, config, versions = gallery
    return GraphWork(store.url, *versions, attempt, neighbours, fold, parts, config.seed)


def graphs(gallery, settings, executor=None, **more):
    """Build and publish graphs; return the counts and the artefact. ``settings`` distinguishes versions."""
    store = gallery[0]
    with begin(store, "graphs", settings) as attempt:
        counts, files = build_graphs(work_of(gallery, attempt.folder, **more), executor or LocalExecutor(), silent)
        attempt.publish(make_manifest("graphs", settings, {}, {}, counts, files))
    return counts, store.artefact("graphs", settings)


def split_of(gallery):
    return Split(gallery[0].artefact("splits", gallery[2][1]))


def brute_force(query, allowed, neighbours):
    """Return rows and distances of the nearest allowed scans by brute force."""
    candidates = np.flatnonzero(allowed)
    distances = exact_distances(VECTORS[query][None], VECTORS[candidates][None])[0]
    first = np.lexsort((candidates, distances))[:neighbours]
    pads = neighbours - len(first)
    return candidates[first].tolist() + [-1] * pads, distances[first].tolist() + [np.inf] * pads


def check(table, queries, allowed, neighbours, own_group):
    assert table.queries.tolist() == np.flatnonzero(queries).tolist()
    for number, query in enumerate(table.queries.tolist()):
        candidates = allowed if own_group else allowed & (GROUPS[query] != GROUPS)
        rows, distances = brute_force(query, candidates, neighbours)
        assert table.neighbours_qn[number].tolist() == rows
        assert table.distances_qn[number].tolist() == distances
        relevant = [row >= 0 and LABELS[query] is not None and LABELS[row] == LABELS[query] for row in rows]
        assert table.relevant_qn[number].tolist() == relevant


@pytest.mark.parametrize("neighbours", [2, 6, 40])
def test_neighbour_lists_of_all_parts_equal_brute_force(gallery, neighbours):
    split = split_of(gallery)
    counts, artefact = graphs(gallery, f"all-{neighbours}", neighbours=neighbours)
    parts = {"train": split.fit, "held_out": split.held_out, "validation": split.validation, "test": split.test}
    assert counts.stated() == {part: int(mask.sum()) for part, mask in parts.items()}
    assert min(counts.stated().values()) > 5
    for part, queries in parts.items():
        # Test queries may have their own group as neighbours: the protocol decides whether that is in the gallery.
        check(read_graphs(artefact, part), queries, split.train, neighbours, own_group=part == "test")


def test_each_block_is_a_file_and_the_block_size_does_not_change_the_lists(gallery, monkeypatch):
    _, several = graphs(gallery, "several")
    sizes = [schemas.from_parquet(data).num_rows for _, data in several.iter_files("graphs/")]
    total = sum(sizes)
    assert sizes == [BLOCK] * (total // BLOCK) + [total % BLOCK]
    monkeypatch.setattr(graph_build, "BLOCK", 4096)
    _, single = graphs(gallery, "one")
    assert len(single.names("graphs/")) == 1
    for part in ("train", "held_out", "validation", "test"):
        table, other = read_graphs(several, part), read_graphs(single, part)
        assert all((a == b).all() for a, b in zip(vars(table).values(), vars(other).values(), strict=True))


def test_only_the_requested_parts_are_searched(gallery):
    split = split_of(gallery)
    counts, artefact = graphs(gallery, "parts", parts=("validation", "test"))
    assert counts.stated() == {"validation": int(split.validation.sum()), "test": int(split.test.sum())}
    assert len(read_graphs(artefact, "train")) == 0
    check(read_graphs(artefact, "validation"), split.validation, split.train, 6, own_group=False)
    assert graphs(gallery, "none", parts=())[0].stated() == {}


def test_with_a_fold_the_unseen_scans_are_queries_and_the_seen_scans_the_gallery(gallery):
    split, fold = split_of(gallery), Fold(1, 3)
    seen = split.fit & ~fold.members(GROUPS.tolist(), gallery[1].seed)
    counts, artefact = graphs(gallery, "fold", fold=fold)
    assert counts.stated() == {"train": int((split.fit & ~seen).sum())}
    check(read_graphs(artefact, "train"), split.fit & ~seen, seen, 6, own_group=False)


def test_extra_neighbours_cover_the_largest_group_that_may_be_excluded(gallery):
    queries, split = collect_queries(work_of(gallery, "graphs/_attempts/x")), split_of(gallery)
    sizes = Counter(GROUPS[split.train].tolist())
    excluded = split.fit | split.held_out | split.validation
    assert queries.extra == max(sizes[group] for group in GROUPS[excluded].tolist())
    assert queries.extra > 2
    # Nothing is excluded if only the test part is searched.
    assert collect_queries(work_of(gallery, "graphs/_attempts/x", parts=("test",))).extra == 0


class KilledError(Exception):
    pass


class FailingExecutor(LocalExecutor):
    """Runs the given number of tasks and fails at the next one."""

    def __init__(self, tasks):
        self.remaining = tasks

    def map(self, work, items, bytes_each=0, gpus_each=0):
        for item in items:
            if not self.remaining:
                raise KilledError
            self.remaining -= 1
            yield work(item)


def hits_files(store):
    """Return inode and time of each hits file of the killed attempt."""
    (attempt,) = Path(store.path("graphs/_attempts")).iterdir()
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in attempt.glob("work/*.npz")}


class RecordingExecutor(LocalExecutor):
    """Records the hits files before they are merged and removed."""

    def __init__(self, store):
        self.store, self.seen = store, {}

    def map(self, work, items, bytes_each=0, gpus_each=0):
        for item in items:
            yield work(item)
            self.seen = hits_files(self.store)


#: Tasks run in this order: collect the queries, search each shard, merge the blocks.
@pytest.mark.parametrize("tasks", [0, 1, 1 + SHARDS - 1, 1 + SHARDS, 1 + SHARDS + 2])
def test_a_resumed_run_does_not_repeat_finished_searches(gallery, tasks):
    store = gallery[0]
    counts, undisturbed = graphs(gallery, f"undisturbed-{tasks}")
    with pytest.raises(KilledError):
        graphs(gallery, f"killed-{tasks}", FailingExecutor(tasks))
    blocks, before = -(-sum(counts.stated().values()) // BLOCK), hits_files(store)
    assert len(before) == blocks * min(max(0, tasks - 1), SHARDS)
    if before:
        # If one block of a shard is missing, only that block is searched again.
        lost = sorted(before)[0]
        lost.unlink()
    recorder = RecordingExecutor(store)
    again, artefact = graphs(gallery, f"killed-{tasks}", recorder)
    assert len(recorder.seen) == blocks * SHARDS
    assert all(recorder.seen[path] == when for path, when in before.items() if path != lost)
    assert again == counts
    assert [f.sha256 for f in artefact.manifest.files] == [f.sha256 for f in undisturbed.manifest.files]
    assert store.listdir("graphs/_attempts") == []
