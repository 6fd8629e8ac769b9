from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests.galleries import Line, Scan, index_config, published, scans_table, vectors_of

from mrcg.corpus.splits import SPLITS, Fold, Split, make_splits
from mrcg.execution.executor import LocalExecutor, silent
from mrcg.index.distances import exact_distances
from mrcg.reranker import graph_build
from mrcg.reranker.graph_build import GraphWork, build_graphs, gather
from mrcg.reranker.graph_table import read_graphs
from mrcg.storage import schemas
from mrcg.storage.attempts import begin
from mrcg.storage.manifest import make_manifest
from mrcg.storage.store import Store

DIM, SHARDS, BLOCK = 4, 3, 29
#: Vectors come in seven clusters. A group is larger than some lists, lies in one cluster and so in one shard.
SCANS = [
    Scan(number, (None, "a", "b", "c")[number % 9 % 4], f"group {number % 21}", f"site {number % 7 % 3}")
    for number in range(231)
]
VECTORS = vectors_of(SCANS, DIM)
LABELS = [one.label for one in SCANS]
GROUPS = np.array([one.group for one in SCANS])


@pytest.fixture(scope="module", params=["flat", "ivf_flat"])
def gallery(request, tmp_path_factory):
    """Corpus, splits, embeddings and an index that leaves nothing out."""
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
    """Counts, and the published lists; ``settings`` tells one version from another."""
    store = gallery[0]
    with begin(store, "graphs", settings) as attempt:
        counts, files = build_graphs(work_of(gallery, attempt.folder, **more), executor or LocalExecutor(), silent)
        attempt.publish(make_manifest("graphs", settings, {}, {}, counts, files))
    return counts, store.artefact("graphs", settings)


def split_of(gallery):
    return Split(gallery[0].artefact("splits", gallery[2][1]))


def by_hand(query, allowed, neighbours):
    """Rows and distances of the nearest allowed scans, each looked at."""
    kept = np.flatnonzero(allowed)
    distances = exact_distances(VECTORS[query][None], VECTORS[kept][None])[0]
    first = np.lexsort((kept, distances))[:neighbours]
    pads = neighbours - len(first)
    return kept[first].tolist() + [-1] * pads, distances[first].tolist() + [np.inf] * pads


def check(table, queries, allowed, neighbours, own_group):
    assert table.queries.tolist() == np.flatnonzero(queries).tolist()
    for place, query in enumerate(table.queries.tolist()):
        mine = allowed if own_group else allowed & (GROUPS[query] != GROUPS)
        rows, distances = by_hand(query, mine, neighbours)
        assert table.neighbours_qn[place].tolist() == rows
        assert table.distances_qn[place].tolist() == distances
        relevant = [row >= 0 and LABELS[query] is not None and LABELS[row] == LABELS[query] for row in rows]
        assert table.relevant_qn[place].tolist() == relevant


@pytest.mark.parametrize("neighbours", [2, 6, 40])
def test_lists_of_all_parts_equal_a_search_query_by_query(gallery, neighbours):
    split = split_of(gallery)
    counts, artefact = graphs(gallery, f"all-{neighbours}", neighbours=neighbours)
    parts = {"train": split.fit, "held_out": split.held_out, "validation": split.validation, "test": split.test}
    assert counts == {part: int(mask.sum()) for part, mask in parts.items()}
    assert min(counts.values()) > 5
    for part, queries in parts.items():
        # A test query may find its own group: the protocol decides what is in the gallery.
        check(read_graphs(artefact, part), queries, split.train, neighbours, own_group=part == "test")


def test_a_block_is_a_file_and_blocks_do_not_show(gallery, monkeypatch):
    _, several = graphs(gallery, "several")
    sizes = [schemas.from_parquet(data).num_rows for _, data in several.each("graphs/")]
    total = sum(sizes)
    assert sizes == [BLOCK] * (total // BLOCK) + [total % BLOCK]
    monkeypatch.setattr(graph_build, "BLOCK", 4096)
    _, one = graphs(gallery, "one")
    assert len(one.names("graphs/")) == 1
    for part in ("train", "held_out", "validation", "test"):
        mine, other = read_graphs(several, part), read_graphs(one, part)
        assert all((a == b).all() for a, b in zip(vars(mine).values(), vars(other).values(), strict=True))


def test_only_the_parts_that_are_asked_for_are_looked_up(gallery):
    split = split_of(gallery)
    counts, artefact = graphs(gallery, "parts", parts=("validation", "test"))
    assert counts == {"validation": int(split.validation.sum()), "test": int(split.test.sum())}
    assert len(read_graphs(artefact, "train")) == 0
    check(read_graphs(artefact, "validation"), split.validation, split.train, 6, own_group=False)
    assert graphs(gallery, "none", parts=())[0] == {}


def test_of_a_fold_the_left_out_look_among_those_that_were_seen(gallery):
    split, fold = split_of(gallery), Fold(1, 3)
    seen = split.fit & ~fold.members(GROUPS.tolist(), gallery[1].seed)
    counts, artefact = graphs(gallery, "fold", fold=fold)
    assert counts == {"train": int((split.fit & ~seen).sum())}
    check(read_graphs(artefact, "train"), split.fit & ~seen, seen, 6, own_group=False)


def test_as_many_more_are_fetched_as_the_largest_group_may_take_away(gallery):
    asked, split = gather(work_of(gallery, "graphs/_attempts/x")), split_of(gallery)
    sizes = Counter(GROUPS[split.train].tolist())
    excluded = split.fit | split.held_out | split.validation
    assert asked.extra == max(sizes[group] for group in GROUPS[excluded].tolist())
    assert asked.extra > 2
    # Nobody is excluded where only the test part is looked up.
    assert gather(work_of(gallery, "graphs/_attempts/x", parts=("test",))).extra == 0


class KilledError(Exception):
    pass


class Dying(LocalExecutor):
    """Does so many pieces and dies with the next."""

    def __init__(self, pieces):
        self.left = pieces

    def map(self, work, items, bytes_each=0, gpus_each=0):
        for item in items:
            if not self.left:
                raise KilledError
            self.left -= 1
            yield work(item)


def answers(store):
    """The answers of an attempt that was killed: each file and when it was written."""
    (attempt,) = Path(store.path("graphs/_attempts")).iterdir()
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in attempt.glob("work/*.npz")}


class Watching(LocalExecutor):
    """Keeps what the answers were before they are merged and removed."""

    def __init__(self, store):
        self.store, self.seen = store, {}

    def map(self, work, items, bytes_each=0, gpus_each=0):
        for item in items:
            yield work(item)
            self.seen = answers(self.store)


#: The queries are gathered, then each shard is asked; after that lists are merged.
@pytest.mark.parametrize("pieces", [0, 1, 1 + SHARDS - 1, 1 + SHARDS, 1 + SHARDS + 2])
def test_what_a_killed_run_was_answered_is_not_asked_again(gallery, pieces):
    store = gallery[0]
    counts, undisturbed = graphs(gallery, f"undisturbed-{pieces}")
    with pytest.raises(KilledError):
        graphs(gallery, f"killed-{pieces}", Dying(pieces))
    blocks, before = -(-sum(counts.values()) // BLOCK), answers(store)
    assert len(before) == blocks * min(max(0, pieces - 1), SHARDS)
    if before:
        # One block of a shard is enough to be asked for it alone.
        lost = sorted(before)[0]
        lost.unlink()
    watching = Watching(store)
    again, artefact = graphs(gallery, f"killed-{pieces}", watching)
    assert len(watching.seen) == blocks * SHARDS
    assert all(watching.seen[path] == when for path, when in before.items() if path != lost)
    assert again == counts
    assert [one.sha256 for one in artefact.manifest.files] == [one.sha256 for one in undisturbed.manifest.files]
    assert store.listdir("graphs/_attempts") == []
