"""SIGKILL in all that changes a store without a training: what is left is whole, and doing it again completes it."""

import random
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from tests.faults import changes
from tests.faults.killing import Killing, Moment, assert_sound, copy_of, files_of, run
from tests.galleries import Line, Scan, vectors_of

from mrcg.api.requests import SearchParams
from mrcg.erasure.records import check_receipt
from mrcg.imaging.samples import write_samples
from mrcg.privacy.suppression import suppressed
from mrcg.privacy.tombstones import FOLDER as TOMBSTONES
from mrcg.releases.gc import sweep
from mrcg.releases.release import read_release, release_numbers
from mrcg.retrieval.local import LocalPipeline
from mrcg.storage.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: How often each is killed here; test_kill_reindex.py kills the command itself.
KILLS = {
    "build flat": 3, "build hnsw": 4, "build ivf_flat": 4, "grow hnsw": 3, "grow ivf_flat": 4,
    "reindex": 7, "promote": 6, "rollback": 6, "gc": 10, "erase": 10,
}  # fmt: skip
#: A gallery whose parts are several, and by how much it grows.
GALLERY, GROWN = 5000, 5600


def test_these_are_fifty_kills_and_more():
    assert sum(KILLS.values()) >= 50


@dataclass(frozen=True)
class World:
    """A store whose source has grown.

    ``ready``: release 1, and the corpus and embeddings of what came; ``reindexed``: release 2 as well.
    """

    source: Path
    image: bytes
    ready: Store
    reindexed: Store

    def sound(self, store):
        assert_sound(store, self.image)


@pytest.fixture(scope="module")
def world(library_store, scans, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    ready = copy_of(library_store, folder / "ready")
    changes.as_trained(ready)
    source = shutil.copytree(scans, folder / "scans")
    write_samples(source / "glioma_tumor" / "new", 8, seed=9)
    changes.read_and_embed(ready, str(source))
    reindexed = copy_of(ready, folder / "reindexed")
    changes.reindex(reindexed.url, str(source))
    return World(source, sorted(scans.rglob("*.png"))[0].read_bytes(), ready, reindexed)


def killing(name, act, origin, sound, finished, tmp_path):
    """Kills of one operation, each time on a copy of a store."""
    return Killing(
        act=act,
        fresh=lambda number: copy_of(origin, tmp_path / f"{number:03d}"),
        sound=sound,
        finished=finished,
        rng=random.Random(name),
    )


def visible(store):
    """All files but what says when something was done, and what a killed job left for `mrcg gc`."""
    files = files_of(store).items()
    return {name: data for name, data in files if not name.endswith("run.json") and "/_attempts/" not in name}


@pytest.fixture(scope="module")
def galleries(world, tmp_path_factory):
    """The store with two states of a gallery."""
    store = copy_of(world.ready, tmp_path_factory.mktemp("galleries") / "store")
    scans = [Scan(number) for number in range(GROWN)]
    lines = [Line.of(store, some, vectors_of(some, 64)) for some in (scans[:GALLERY], scans)]
    return store, *({"corpus": line.corpus, "embeddings": line.embeddings} for line in lines)


def settings_of(kind):
    return (f"index.kind={kind}", "index.part_bytes=1048576", "index.shards=1", "index.recall_sample=64")


@pytest.mark.parametrize("name", [name for name in KILLS if name.startswith(("build", "grow"))])
def test_a_build_gives_the_same_bytes(name, world, galleries, tmp_path):
    store, first, second = galleries
    how, kind = name.split()
    settings, inputs = settings_of(kind), first
    if how == "grow":
        store = copy_of(store, tmp_path / "base")
        changes.build(store.url, first, settings)
        inputs = {**second, "indexes": changes.index_step(first, settings)[1].version}

    def finished(store):
        assert visible(store) == whole

    kills = killing(
        name, lambda s: partial(changes.build, s.url, inputs, settings), store, world.sound, finished, tmp_path
    )
    undisturbed, ended = kills.undisturbed()
    whole = visible(undisturbed)
    parts = {name for name in whole if name.endswith(".vectors.f16")}.difference(visible(store))
    assert len(parts) > (how == "build"), "several parts, or one more"
    kills.kill(KILLS[name], ended, timers=1)
    assert kills.kills == KILLS[name]


def test_a_reindex_pins_the_same(world, tmp_path):
    wanted = read_release(world.reindexed, 2).pins

    def finished(store):
        assert release_numbers(store) == [1, 2]
        assert read_release(store).pins == wanted

    kills = killing(
        "reindex",
        lambda s: partial(changes.reindex, s.url, str(world.source)),
        world.ready,
        world.sound,
        finished,
        tmp_path,
    )
    _, ended = kills.undisturbed()
    kills.kill(KILLS["reindex"], ended, in_a_row=4, timers=2)
    assert kills.kills == KILLS["reindex"]


def test_a_promotion_pins_the_same(world, tmp_path):
    wanted = read_release(world.reindexed, 2)
    origin = copy_of(world.reindexed, tmp_path / "origin")
    origin.remove("releases/history/2.json")

    def finished(store):
        assert release_numbers(store) == [1, 2]
        assert read_release(store).pins == wanted.pins

    kills = killing(
        "promote",
        lambda s: partial(changes.promote_report, s.url, wanted.report),
        origin,
        world.sound,
        finished,
        tmp_path,
    )
    _, ended = kills.undisturbed()
    kills.kill(KILLS["promote"], ended)
    assert kills.kills == KILLS["promote"]


def test_a_rollback_pins_the_same(world, tmp_path):
    wanted = read_release(world.reindexed, 1).pins

    def finished(store):
        # Killed once it was done, it is done once more: the same again.
        assert release_numbers(store) in ([1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5])
        assert {tuple(read_release(store, n).pins.items()) for n in release_numbers(store)[2:]} == {
            tuple(wanted.items())
        }

    kills = killing(
        "rollback", lambda s: partial(changes.roll_back, s.url, 1), world.reindexed, world.sound, finished, tmp_path
    )
    _, ended = kills.undisturbed()
    kills.kill(KILLS["rollback"], ended)
    assert kills.kills == KILLS["rollback"]


def test_what_is_swept_is_the_same(world, galleries, tmp_path):
    origin, (_, inputs, _) = copy_of(world.reindexed, tmp_path / "origin"), galleries
    for kind in ("corpus", "embeddings"):
        shutil.copytree(galleries[0].path(f"{kind}/{inputs[kind]}"), origin.path(f"{kind}/{inputs[kind]}"))
    assert run(partial(changes.build, origin.url, inputs, settings_of("hnsw")), Moment(60, True)).killed
    origin.write_bytes("corpus/moved/then/killed.parquet", b"1")

    def finished(store):
        assert visible(store) == whole
        assert store.listdir("indexes/_attempts") == []

    kills = killing("gc", lambda s: partial(changes.sweep_old, s.url), origin, world.sound, finished, tmp_path)
    undisturbed, ended = kills.undisturbed()
    whole = visible(undisturbed)
    assert len(whole) < len(visible(origin)) - 10
    assert visible(origin).items() > whole.items()
    kills.kill(KILLS["gc"], ended)
    assert kills.kills == KILLS["gc"]


def test_what_is_erased_stays_erased(world, tmp_path):
    image_id = LocalPipeline.open(world.reindexed).search(world.image, SearchParams(k=1)).hits[0].image_id

    def sound(store):
        world.sound(store)
        if store.exists(TOMBSTONES):
            hits = LocalPipeline.open(store).search(world.image, SearchParams(k=20)).hits
            assert image_id not in {hit.image_id for hit in hits}

    def finished(store):
        signed = changes.erase(store.url, image_id)
        verdict = check_receipt(store, signed, changes.SIGNER.public_key, suppressed(store))
        assert verdict.holds, verdict
        assert read_release(store).pins == wanted
        left = sweep(store, grace_days=0, dry_run=True)
        assert (left.attempts, left.files) == ((), ()), "nothing that belongs to nobody, either"

    kills = killing(
        "erase", lambda s: partial(changes.erase, s.url, image_id), world.reindexed, sound, finished, tmp_path
    )
    undisturbed, ended = kills.undisturbed()
    wanted = read_release(undisturbed).pins
    finished(undisturbed)
    kills.kill(KILLS["erase"], ended, in_a_row=4, timers=2)
    assert kills.kills == KILLS["erase"]
