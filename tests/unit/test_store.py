import threading

import pytest
from tests.making import publish, tiny_config

from mrcg.errors import AlreadyExistsError, IntegrityError, NotFoundError, StoreError
from mrcg.stages import Source, plan
from mrcg.store import Store


@pytest.fixture(params=["file", "memory"])
def any_store(request, tmp_path):
    return Store(str(tmp_path / "s") if request.param == "file" else f"memory://{tmp_path.name}")


def steps():
    return plan(tiny_config(), Source("x", "digest", 1, 1, False), "none")


def test_bytes_come_back(any_store):
    any_store.write_bytes("a/b.txt", b"1")
    any_store.write_bytes("a/b.txt", b"2")
    assert any_store.read_bytes("a/b.txt") == b"2"
    assert any_store.listdir("a") == ["b.txt"]
    any_store.remove("a/b.txt")
    any_store.remove("a/b.txt")
    assert not any_store.exists("a/b.txt")


def test_reading_what_is_not_there(any_store):
    with pytest.raises(NotFoundError, match="has no a/b"):
        any_store.read_bytes("a/b")
    assert any_store.listdir("nowhere") == []


def test_create_is_create_only(any_store):
    any_store.create("one", b"first")
    with pytest.raises(AlreadyExistsError):
        any_store.create("one", b"second")
    assert any_store.read_bytes("one") == b"first"


def test_of_many_creators_one_wins(store):
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
    with pytest.raises(StoreError, match="cannot be written .*: name another --store or mend its permissions"):
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


def test_a_manifest_edited_by_hand_is_found(store):
    step = steps()[0]
    publish(store, step, {"a": b"abc"}, {"images": 1})
    where = f"corpus/{step.version}/manifest.json"
    store.write_bytes(where, store.read_bytes(where).replace(b'"images": 1', b'"images": 2'))
    with pytest.raises(IntegrityError, match="hash mismatch"):
        store.manifest("corpus", step.version)
    store.write_bytes(where, b"{")
    with pytest.raises(IntegrityError, match="is not a manifest"):
        store.manifest("corpus", step.version)


def test_a_flipped_byte_is_found(store):
    step = steps()[0]
    manifest = publish(store, step, {"a": b"abc"})
    store.write_bytes(f"{manifest.folder}/a", b"abd")
    with pytest.raises(IntegrityError, match="does not match its manifest"):
        store.artefact("corpus", step.version).read_bytes("a")
