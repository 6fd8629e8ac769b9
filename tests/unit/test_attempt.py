import json
import os
import time

import pytest

from mrcg import attempt as attempts
from mrcg.attempt import begin, collect_garbage, is_live
from mrcg.errors import StoreError
from mrcg.manifest import make_manifest


def manifest_of(attempt, data):
    entry = attempt.write("a.bin", data)
    return make_manifest(attempt.kind, attempt.version, {}, {}, {}, [entry])


def test_nothing_is_visible_before_the_manifest(store):
    with begin(store, "corpus", "v1") as attempt:
        manifest = manifest_of(attempt, b"1")
        assert store.versions("corpus") == []
        attempt.publish(manifest)
        assert store.versions("corpus") == ["v1"]
    assert store.listdir("corpus/_attempts") == []


@pytest.mark.parametrize("second", [b"1", b"2"], ids=["equal", "different"])
def test_the_first_writer_wins_and_the_second_stands_back(store, second):
    with begin(store, "corpus", "v1") as one, begin(store, "corpus", "v1") as two:
        assert one.folder != two.folder
        mine, other = manifest_of(one, b"1"), manifest_of(two, second)
        assert one.publish(mine) == mine
        assert two.publish(other) == mine
    assert store.artefact("corpus", "v1").read_bytes("a.bin") == b"1"
    assert store.listdir("corpus/v1") == sorted([mine.folder.rsplit("/", 1)[1], "manifest.json"])


def test_an_abandoned_attempt_is_taken_over_once(store):
    with pytest.raises(RuntimeError), begin(store, "corpus", "v1") as dead:
        store.write_bytes(f"{dead.folder}/checkpoint", b"half way")
        raise RuntimeError("died")
    with begin(store, "corpus", "v1") as heir, begin(store, "corpus", "v1") as other:
        assert heir.folder == dead.folder
        assert other.folder != dead.folder
        assert store.read_bytes(f"{heir.folder}/checkpoint") == b"half way"


def test_an_attempt_at_another_version_is_left_alone(store):
    with pytest.raises(RuntimeError), begin(store, "corpus", "v1") as dead:
        raise RuntimeError
    with begin(store, "corpus", "v2") as attempt:
        assert attempt.folder != dead.folder


def lease(store, folder, **changes):
    name = f"{folder}/lease-0000.json"
    store.write_bytes(name, json.dumps({**store.read_json(name), **changes}).encode())


def test_a_lease_lives_while_its_process_does(store):
    with begin(store, "corpus", "v1") as attempt:
        assert is_live(store, attempt.folder)
        lease(store, attempt.folder, started=1)  # the pid was given out again
        assert not is_live(store, attempt.folder)
        lease(store, attempt.folder, host="elsewhere")
        assert is_live(store, attempt.folder)
        lease(store, attempt.folder, expires=time.time() - 1)
        assert not is_live(store, attempt.folder)


def test_a_lease_is_renewed(store, monkeypatch):
    monkeypatch.setattr(attempts, "LEASE_SECONDS", 0.2)
    with begin(store, "corpus", "v1") as attempt:
        time.sleep(0.5)
        assert is_live(store, attempt.folder)


def test_garbage_is_what_nobody_holds(store):
    with begin(store, "corpus", "v1") as done:
        done.publish(manifest_of(done, b"1"))
    store.write_bytes("corpus/v1/orphan/a.bin", b"moved, then killed")
    store.write_bytes("splits/v9/orphan/a.bin", b"moved, then killed")
    with pytest.raises(RuntimeError), begin(store, "corpus", "v2") as dead:
        raise RuntimeError
    with begin(store, "corpus", "v3") as live:
        removed = collect_garbage(store)
        assert sorted(removed) == sorted(["corpus/v1/orphan", "splits/v9/orphan", dead.folder])
        assert store.exists(live.folder)
    assert store.artefact("corpus", "v1").read_bytes("a.bin") == b"1"
    assert not store.exists("splits/v9")


def test_this_process_has_a_start_time():
    assert attempts._started(os.getpid())
    assert attempts._started(2**22 + 1) is None


def test_who_slept_too_long_does_not_publish(store):
    with begin(store, "corpus", "v1") as slept:
        manifest = manifest_of(slept, b"1")
        lease(store, slept.folder, expires=0)
        with begin(store, "corpus", "v1") as heir:
            assert heir.folder == slept.folder
            with pytest.raises(StoreError, match="was taken over by another run"):
                slept.publish(manifest)


def test_garbage_collection_leaves_a_damaged_version_alone(store):
    with begin(store, "corpus", "v1") as done:
        manifest = done.publish(manifest_of(done, b"1"))
    store.write_bytes("corpus/v1/manifest.json", b"{}")
    assert collect_garbage(store) == []
    assert store.exists(manifest.folder)
