import json
import os
import subprocess
import sys
import time

import pytest
from tests.manifests import make_manifest

from mrcg.errors import StoreError
from mrcg.storage import attempts
from mrcg.storage.attempts import abandoned_attempts, begin, busy_versions, discard, inputs_of_live_attempts, is_live


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
def test_first_publisher_wins(store, second):
    with begin(store, "corpus", "v1") as one, begin(store, "corpus", "v1") as two:
        assert one.folder != two.folder
        mine, other = manifest_of(one, b"1"), manifest_of(two, second)
        assert one.publish(mine) == mine
        assert two.publish(other) == mine
    assert store.artefact("corpus", "v1").read_bytes("a.bin") == b"1"
    assert store.listdir("corpus/v1") == sorted([mine.folder.rsplit("/", 1)[1], "manifest.json"])


def test_abandoned_attempt_is_resumed_by_one_run_only(store):
    with pytest.raises(RuntimeError), begin(store, "corpus", "v1") as dead:
        store.write_bytes(f"{dead.folder}/checkpoint", b"half way")
        raise RuntimeError("died")
    with begin(store, "corpus", "v1") as heir, begin(store, "corpus", "v1") as other:
        assert heir.folder == dead.folder
        assert other.folder != dead.folder
        assert store.read_bytes(f"{heir.folder}/checkpoint") == b"half way"


def test_attempt_at_another_version_is_not_resumed(store):
    with pytest.raises(RuntimeError), begin(store, "corpus", "v1") as dead:
        raise RuntimeError
    with begin(store, "corpus", "v2") as attempt:
        assert attempt.folder != dead.folder


def lease(store, folder, **changes):
    name = f"{folder}/lease-0000.json"
    store.write_bytes(name, json.dumps({**store.read_json(name), **changes}).encode())


def test_lease_is_live_while_its_process_runs(store):
    with begin(store, "corpus", "v1") as attempt:
        assert is_live(store, attempt.folder)
        lease(store, attempt.folder, started=1)  # the system reused the pid
        assert not is_live(store, attempt.folder)
        lease(store, attempt.folder, host="elsewhere")
        assert is_live(store, attempt.folder)
        lease(store, attempt.folder, expires=time.time() - 1)
        assert not is_live(store, attempt.folder)


def test_a_lease_is_renewed(store, monkeypatch):
    monkeypatch.setattr(attempts, "LEASE_SECONDS", 0.2)
    with begin(store, "corpus", "v1") as attempt:
        name = f"{attempt.folder}/lease-0000.json"
        first, until = store.read_json(name)["expires"], time.monotonic() + 30
        while store.read_json(name)["expires"] < first + 0.5:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_abandoned_attempts_can_be_claimed(store):
    with pytest.raises(RuntimeError), begin(store, "corpus", "v1") as dead:
        raise RuntimeError
    with begin(store, "splits", "v2", {"corpus": "v0"}):
        assert abandoned_attempts(store, claim=False) == [dead.folder]
        assert abandoned_attempts(store, claim=True) == [dead.folder]
        # This process has claimed it, so no other run resumes it.
        assert abandoned_attempts(store, claim=False) == []
        with begin(store, "corpus", "v1") as other:
            assert other.folder != dead.folder


def test_versions_and_inputs_of_live_attempts(store):
    assert busy_versions(store) == inputs_of_live_attempts(store) == set()
    with pytest.raises(RuntimeError), begin(store, "rerankers", "v1", {"corpus": "c", "graphs:1": "g"}):
        assert busy_versions(store) == {("rerankers", "v1")}
        assert inputs_of_live_attempts(store) == {("corpus", "c"), ("graphs", "g")}
        raise RuntimeError
    assert busy_versions(store) == inputs_of_live_attempts(store) == set()


class KilledError(BaseException):
    """Stands for SIGKILL: no code of MRCG catches it."""


def kill_after(monkeypatch, times, *functions):
    """Simulate a kill after ``times`` changes on disk."""
    left = [times]

    def counted(change):
        def go(*args, **more):
            if not left[0]:
                raise KilledError
            left[0] -= 1
            return change(*args, **more)

        return go

    for name in functions:
        monkeypatch.setattr(os, name, counted(getattr(os, name)))


@pytest.mark.parametrize("files", range(4))
def test_killed_publication_is_resumed_with_all_files(store, files, monkeypatch):
    names = ["a", "b", "c"]
    with begin(store, "corpus", "v1") as killed:
        entries = [killed.write(name, name.encode()) for name in names]
        manifest = make_manifest("corpus", "v1", {}, {}, {}, entries)
        with monkeypatch.context() as patch, pytest.raises(KilledError):
            kill_after(patch, files, "replace", "fsync")  # replace() places a file, fsync() precedes the manifest
            killed.publish(manifest)
        lease(store, killed.folder, expires=0)
        with begin(store, "corpus", "v1") as heir:
            assert heir.folder == killed.folder
            assert [heir.entry(name) for name in names] == entries
            assert store.versions("corpus") == []
            heir.publish(manifest)
    artefact = store.artefact("corpus", "v1")
    assert [artefact.read_bytes(name) for name in names] == [name.encode() for name in names]
    assert not store.exists(killed.folder)


@pytest.mark.parametrize("changes", range(6))
def test_half_removed_attempt_is_not_resumed(store, changes, monkeypatch):
    with pytest.raises(RuntimeError), begin(store, "corpus", "v1") as dead:
        for name in "abc":
            dead.write(name, b"1")
        raise RuntimeError
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        kill_after(patch, changes, "remove", "unlink", "rmdir")
        discard(store, dead.folder)
    with begin(store, "corpus", "v1") as heir:
        untouched = changes == 0
        assert (heir.folder == dead.folder) == untouched
        if not untouched:
            assert abandoned_attempts(store, claim=True) == [dead.folder]
            discard(store, dead.folder)
            assert not store.exists(dead.folder)


def test_this_process_has_a_start_time():
    assert attempts._process_start(os.getpid())
    assert attempts._process_start(2**22 + 1) is None


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_zombie_process_counts_as_dead():
    process = subprocess.Popen(["sleep", "60"])
    assert attempts._process_start(process.pid)
    process.kill()
    until = time.monotonic() + 10
    while attempts._process_start(process.pid) is not None:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert os.path.exists(f"/proc/{process.pid}"), "the zombie is still listed"
    process.wait()


def test_run_with_expired_and_taken_over_lease_does_not_publish(store):
    with begin(store, "corpus", "v1") as slept:
        manifest = manifest_of(slept, b"1")
        lease(store, slept.folder, expires=0)
        with begin(store, "corpus", "v1") as heir:
            assert heir.folder == slept.folder
            with pytest.raises(StoreError, match="was taken over by another run"):
                slept.publish(manifest)
