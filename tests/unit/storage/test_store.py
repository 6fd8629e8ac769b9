import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.factories import publish, tiny_config
from tests.manifests import make_manifest

from mrcg.corpus.sources import Source
from mrcg.errors import AlreadyExistsError, IntegrityError, NotFoundError, StoreError
from mrcg.pipeline.plan import plan
from mrcg.storage.attempts import begin
from mrcg.storage.cache import temp_dir
from mrcg.storage.store import Store


@pytest.fixture(params=["file", "memory"])
def any_store(request, tmp_path):
    return Store(str(tmp_path / "s") if request.param == "file" else f"memory://{tmp_path.name}")


def steps():
    return plan(tiny_config(), Source("x", "digest", 1, 1, False), "none")


def test_written_bytes_are_read(any_store):
    any_store.write_bytes("a/b.txt", b"1")
    any_store.write_bytes("a/b.txt", b"2")
    assert any_store.read_bytes("a/b.txt") == b"2"
    assert any_store.listdir("a") == ["b.txt"]
    any_store.remove("a/b.txt")
    any_store.remove("a/b.txt")
    assert not any_store.exists("a/b.txt")


def test_reading_missing_files(any_store):
    with pytest.raises(NotFoundError, match="has no a/b"):
        any_store.read_bytes("a/b")
    assert any_store.listdir("nowhere") == []


def test_create_is_create_only(any_store):
    any_store.create("one", b"first")
    with pytest.raises(AlreadyExistsError):
        any_store.create("one", b"second")
    assert any_store.read_bytes("one") == b"first"


def test_one_of_many_creators_wins(store):
    won, lost = [], []

    def create(number):
        try:
            store.create("only", str(number).encode())
            won.append(number)
        except AlreadyExistsError:
            lost.append(number)

    threads = [threading.Thread(target=create, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(lost) == 15
    assert store.read_bytes("only") == str(won[0]).encode()
    assert store.listdir("") == ["only"]


@pytest.mark.parametrize("place", ["/proc/mrcg-store", "file"])
def test_a_store_that_is_not_writable(tmp_path, place):
    if place == "file":
        (tmp_path / "file").write_text("not a folder")
        place = str(tmp_path / "file")
    with pytest.raises(StoreError, match="cannot be written .*: fix its permissions or use another --store"):
        Store(place).check_writable()


def test_a_version_is_visible_once_published(any_store):
    step = steps()[0]
    manifest = publish(any_store, step, {"x/y.bin": b"abc"}, {"images": 1})
    assert any_store.versions("corpus") == [step.version]
    artefact = any_store.artefact("corpus", step.version)
    assert artefact.read_bytes("x/y.bin") == b"abc"
    assert artefact.names("x/") == ["x/y.bin"]
    assert any_store.find(step.version[:6]) == manifest
    with pytest.raises(NotFoundError):
        artefact.entry("z")
    with pytest.raises(NotFoundError, match="no version"):
        any_store.find("corpus/zzz")


def test_edited_manifest_is_detected(store):
    step = steps()[0]
    publish(store, step, {"a": b"abc"}, {"images": 1})
    where = f"corpus/{step.version}/manifest.json"
    store.write_bytes(where, store.read_bytes(where).replace(b'"images": 1', b'"images": 2'))
    with pytest.raises(IntegrityError, match="hash mismatch"):
        store.manifest("corpus", step.version)
    store.write_bytes(where, b"{")
    with pytest.raises(IntegrityError, match="is not a manifest"):
        store.manifest("corpus", step.version)


def test_flipped_byte_is_detected(store):
    step = steps()[0]
    manifest = publish(store, step, {"a": b"abc"})
    store.write_bytes(f"{manifest.folder}/a", b"abd")
    with pytest.raises(IntegrityError, match="does not match its manifest"):
        store.artefact("corpus", step.version).read_bytes("a")


# Files of a store as paths of this machine --------------------------------------------------------------------------


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A version in a remote store, and this node's cache."""
    monkeypatch.setenv("MRCG_CACHE", str(tmp_path / "cache"))
    store = Store(f"memory://{tmp_path.name}")
    manifest = publish(store, steps()[0], {"a": b"abc", "b/c": b"defghi"})
    return store.artefact("corpus", manifest.version)


def test_file_of_a_local_store_is_checked_and_not_copied(store):
    manifest = publish(store, steps()[0], {"a": b"abc"})
    artefact = store.artefact("corpus", manifest.version)
    path = artefact.on_disk("a")
    assert path == Path(store.root) / manifest.folder / "a"
    for damage in (b"abd", b"abcd", b""):
        path.write_bytes(damage)
        with pytest.raises(IntegrityError, match="does not match its manifest"):
            artefact.on_disk("a")
    path.unlink()
    with pytest.raises(IntegrityError, match="restore the file, or remove corpus/"):
        artefact.on_disk("a")


def test_a_remote_file_is_fetched_once_into_the_cache(remote, tmp_path, monkeypatch):
    path = remote.on_disk("b/c")
    assert path == tmp_path / "cache" / remote.entry("b/c").sha256
    assert path.read_bytes() == b"defghi"
    assert [one.name for one in path.parent.iterdir()] == [path.name], "nothing half fetched is left"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    monkeypatch.setattr(remote.store, "fetch", lambda *_: pytest.fail("it is here already"))
    assert remote.on_disk("b/c") == path
    assert remote.read_bytes("b/c") == b"defghi"


def test_damaged_cached_file_is_fetched_again(remote):
    path = remote.on_disk("a")
    path.write_bytes(b"abd")
    assert remote.on_disk("a").read_bytes() == b"abc"


def test_damaged_remote_file_is_not_cached(remote, tmp_path):
    remote.store.write_bytes(remote.relative("a"), b"abd")
    with pytest.raises(IntegrityError, match="does not match its manifest"):
        remote.on_disk("a")
    assert list((tmp_path / "cache").iterdir()) == []
    remote.store.remove(remote.relative("a"))
    with pytest.raises(NotFoundError, match="has no corpus/"):
        remote.on_disk("a")


@pytest.mark.parametrize("size", ["0", "5"])
def test_file_that_cannot_be_cached_is_stored_in_the_temporary_folder(remote, tmp_path, monkeypatch, size):
    monkeypatch.setenv("MRCG_CACHE_BYTES", size)
    artefact = remote.store.artefact("corpus", remote.manifest.version)
    path = artefact.on_disk("b/c")
    assert path.read_bytes() == b"defghi"
    assert path.parent == temp_dir()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not (tmp_path / "cache" / path.name).exists()


def test_temporary_folder_is_removed_when_its_process_ends():
    code = "from mrcg.storage.cache import temp_dir; folder = temp_dir(); (folder / 'a').write_text('x'); print(folder); assert temp_dir() == folder"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not Path(done.stdout.strip()).exists()
    assert Path(done.stdout.strip()).name.startswith("mrcg-")


def test_file_is_fetched_to_a_path(any_store, tmp_path):
    any_store.write_bytes("a/b", b"1" * 100_000)
    any_store.fetch("a/b", tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == b"1" * 100_000
    with pytest.raises(NotFoundError, match="has no a/c"):
        any_store.fetch("a/c", tmp_path / "there")


# Files that two versions have -----------------------------------------------------------------------------------------


def test_version_refers_to_a_file_of_another_version(any_store):
    first = publish(any_store, steps()[0], {"a": b"abc", "b": b"old"})
    entries = [any_store.artefact("corpus", first.version).reference("a")]
    with begin(any_store, "corpus", "second") as attempt:
        entries.append(attempt.write("b", b"new"))
        second = attempt.publish(make_manifest("corpus", "second", {}, {}, {}, entries))
    artefact = any_store.artefact("corpus", "second")
    assert (artefact.read_bytes("a"), artefact.read_bytes("b")) == (b"abc", b"new")
    assert artefact.relative("a") == f"{first.folder}/a"
    assert artefact.relative("b") == f"{second.folder}/b"
    assert any_store.files("corpus/second") == [f"{second.folder.rsplit('/', 1)[1]}/b", "manifest.json"]


def test_reference_to_a_referenced_file_names_the_version_that_wrote_it(store):
    first = publish(store, steps()[0], {"a": b"abc"})
    for name, before in (("second", first.version), ("third", "second")):
        entry = store.artefact("corpus", before).reference("a")
        assert entry.folder == first.folder
        with begin(store, "corpus", name) as attempt:
            attempt.publish(make_manifest("corpus", name, {}, {}, {}, [entry]))
    store.remove("corpus/second")
    assert store.artefact("corpus", "third").read_bytes("a") == b"abc"


def test_reference_to_a_removed_file_is_refused(store):
    first = publish(store, steps()[0], {"a": b"abc"})
    entry = store.artefact("corpus", first.version).reference("a")
    store.remove(f"corpus/{first.version}")
    with (
        pytest.raises(StoreError, match=r"was removed while corpus/second was built from it: run the command again"),
        begin(store, "corpus", "second") as attempt,
    ):
        attempt.publish(make_manifest("corpus", "second", {}, {}, {}, [entry]))
    assert store.versions("corpus") == []


def test_a_staged_file_appears_whole_or_not_at_all(any_store):
    with any_store.staged("a/b") as path:
        path.write_bytes(b"half")
        assert not any_store.exists("a/b")
    assert any_store.read_bytes("a/b") == b"half"
    with pytest.raises(ZeroDivisionError), any_store.staged("a/b") as path:
        path.write_bytes(b"other")
        raise ZeroDivisionError
    assert any_store.read_bytes("a/b") == b"half"
    assert any_store.listdir("a") == ["b"]
    assert not path.exists()


def test_a_file_is_read_from_a_path_on_this_machine(any_store):
    any_store.write_bytes("a/b", b"data")
    with any_store.local_path("a/b") as path:
        assert path.read_bytes() == b"data"
    assert path.exists() == any_store.local
    with pytest.raises((NotFoundError, FileNotFoundError)), any_store.local_path("a/none") as path:
        path.read_bytes()
