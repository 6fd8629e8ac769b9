import os
import stat
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.errors import StoreError, UsageError
from mrcg.hashing import sha256
from mrcg.storage.cache import BYTES, DEFAULT_BYTES, FETCHING_SECONDS, FOLDER, Cache
from mrcg_jobs.erasure import sweep_node_cache


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "new" / "cache", 100)


def put(cache, data, age=0):
    """Keep data; as if it had last been used so many seconds ago."""
    cache.put(sha256(data), data)
    path = cache.folder / sha256(data)
    if age and path.exists():
        os.utime(path, (1e9 - age, 1e9 - age))
    return sha256(data)


def kept(cache):
    return {path.name for path in cache.folder.iterdir()}


def test_what_is_put_is_got(cache):
    assert cache.get(sha256(b"one")) is None
    one, two = put(cache, b"one"), put(cache, b"two")
    put(cache, b"one")
    assert (cache.get(one), cache.get(two)) == (b"one", b"two")
    assert kept(cache) == {one, two}
    cache.remove(one)
    cache.remove(one)
    assert cache.get(one) is None


@pytest.mark.parametrize("damage", [b"", b"twisted", b"one more"])
def test_other_content_is_never_served(cache, damage):
    one = put(cache, b"one")
    (cache.folder / one).write_bytes(damage)
    assert cache.get(one) is None
    assert kept(cache) == set()
    put(cache, b"one")
    assert cache.get(one) == b"one"
    cache.put(one, b"wrong from the start")
    assert cache.get(one) is None


def test_the_longest_unused_go_first(cache):
    old, older, new = put(cache, b"a" * 40, 20), put(cache, b"b" * 40, 30), put(cache, b"c" * 20, 10)
    assert cache.get(older) is not None, "now it was used last"
    put(cache, b"d" * 40)
    assert kept(cache) == {older, new, sha256(b"d" * 40)}
    assert cache.get(old) is None


def test_what_is_larger_than_the_cache_is_not_kept_and_drives_nothing_out(cache):
    one = put(cache, b"a" * 60)
    put(cache, b"b" * 101)
    assert kept(cache) == {one}
    exact = put(cache, b"c" * 100)
    assert kept(cache) == {exact}


@given(st.lists(st.integers(1, 120), max_size=12))
def test_the_limit_holds_and_the_newest_is_kept(tmp_path_factory, sizes):
    cache = Cache(tmp_path_factory.mktemp("cache"), 100)
    for number, size in enumerate(sizes):
        name = put(cache, bytes([number]) * size, age=len(sizes) - number)
        assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= 100
        assert (name in kept(cache)) == (size <= 100)


def test_only_the_owner_may_look(cache):
    before = os.umask(0)
    try:
        one = put(cache, b"one")
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((cache.folder / one).stat().st_mode) == 0o600


def test_writers_at_once_leave_whole_files(cache):
    data = [bytes([n]) * 10 for n in range(15)]  # more than it holds
    threads = [threading.Thread(target=lambda: [put(cache, one) for one in data * 5]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept(cache) <= {sha256(one) for one in data}
    assert all(cache.get(name) is not None for name in kept(cache))


def test_a_folder_that_is_no_folder_only_means_that_nothing_is_kept(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file", 100)
    assert cache.get(sha256(b"one")) is None
    put(cache, b"one")
    assert "not cached in" in caplog.text


def test_a_full_disk_only_means_that_nothing_is_kept(cache, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    one = put(cache, b"one")
    assert cache.get(one) is None
    assert kept(cache) == set(), "nothing half written is left"
    assert "No space left on device" in caplog.text


def of_this_node(monkeypatch, **variables):
    for name in (FOLDER, BYTES, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return Cache.of_this_node()


def test_where_the_cache_is_and_how_large(monkeypatch):
    cache = of_this_node(monkeypatch, HOME="/home/jane")
    assert (cache.folder, cache.max_bytes) == (Path("/home/jane/.cache/mrcg"), DEFAULT_BYTES)
    assert of_this_node(monkeypatch, XDG_CACHE_HOME="/xdg").folder == Path("/xdg/mrcg")
    cache = of_this_node(monkeypatch, XDG_CACHE_HOME="/xdg", MRCG_CACHE="/here", MRCG_CACHE_BYTES="1000")
    assert (cache.folder, cache.max_bytes) == (Path("/here"), 1000)
    assert of_this_node(monkeypatch, MRCG_CACHE="", MRCG_CACHE_BYTES="").max_bytes == DEFAULT_BYTES


def test_no_bytes_is_no_cache_and_no_number_an_error(monkeypatch):
    for none in ("0", "-1"):
        assert of_this_node(monkeypatch, MRCG_CACHE_BYTES=none) is None
    for wrong in ("20GB", "1e9", "many"):
        with pytest.raises(UsageError, match="MRCG_CACHE_BYTES is not a number of bytes"):
            of_this_node(monkeypatch, MRCG_CACHE_BYTES=wrong)


# Files that are mapped and not read ---------------------------------------------------------------------------------


def test_a_file_is_found_where_it_lies_checked_and_counts_as_used(cache):
    assert cache.find(sha256(b"one")) is None
    one = put(cache, b"one", age=50)
    path = cache.find(one)
    assert path == cache.folder / one
    assert path.read_bytes() == b"one"
    assert path.stat().st_mtime > 1e9, "it was used just now"


@pytest.mark.parametrize("damage", [b"", b"twisted", b"one more"])
def test_a_file_that_is_another_by_now_is_not_found_and_goes(cache, damage):
    one = put(cache, b"one")
    (cache.folder / one).write_bytes(damage)
    assert cache.find(one) is None
    assert kept(cache) == set()


def test_room_is_made_for_a_file_that_somebody_else_will_write(cache):
    cache.room_for(60)
    assert cache.folder.is_dir(), "the folder is there for it"
    old, new = put(cache, b"a" * 40, 20), put(cache, b"b" * 40, 10)
    cache.room_for(20)
    assert kept(cache) == {old, new}
    cache.room_for(21)
    assert kept(cache) == {new}
    cache.room_for(101)
    assert kept(cache) == set(), "more than it may hold leaves nothing"


@given(st.lists(st.integers(1, 60), max_size=8), st.integers(0, 120))
def test_what_goes_for_room_are_the_longest_unused_and_no_more_than_need_be(tmp_path_factory, sizes, size):
    cache = Cache(tmp_path_factory.mktemp("cache"), 100)
    for number, one in enumerate(sizes):
        put(cache, bytes([number]) * one, age=len(sizes) - number)
    before = sorted((path.stat().st_mtime, path.stat().st_size, path.name) for path in cache.folder.iterdir())
    cache.room_for(size)
    left = kept(cache)
    over = sum(one for _, one, _ in before) + size - 100
    gone = []
    for _, one, name in before:
        if over > 0:
            gone.append(name)
            over -= one
    assert left == {name for *_, name in before} - set(gone)


# What an erasure leaves in it ---------------------------------------------------------------------------------------


@pytest.fixture
def node_cache(tmp_path, monkeypatch):
    """The cache of this node, a folder that is not there yet."""
    monkeypatch.setenv("MRCG_CACHE", str(tmp_path / "cache"))
    return Cache.of_this_node()


def unfinished(cache, letter, age):
    """A temporary file as a writer has it before it is complete."""
    path = cache.folder / f".{letter * 32}.tmp"
    path.write_bytes(b"x")
    os.utime(path, (time.time() - age, time.time() - age))
    return path.name


def test_a_cache_keeps_what_the_store_still_has_and_what_is_being_fetched(node_cache, monkeypatch):
    sweep_node_cache(["a" * 64])
    kept_file, other = put(node_cache, b"kept"), put(node_cache, b"other")
    fetched, abandoned = unfinished(node_cache, "a", 60), unfinished(node_cache, "b", 2 * FETCHING_SECONDS)
    sweep_node_cache([kept_file, "f" * 64])
    assert kept(node_cache) == {kept_file, fetched}
    assert not {other, abandoned} & kept(node_cache)
    monkeypatch.setenv("MRCG_CACHE_BYTES", "0")
    sweep_node_cache([])
    assert kept(node_cache) == {kept_file, fetched}, "no cache of this node any more"


def foreign_entries(folder, elsewhere):
    """Whatever may lie in a cache folder and is not a cached file; returns what must survive a sweep."""
    weights = folder / "weights" / "0123456789ab-vgg16.pth"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"w" * 200)
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(b"somebody's")
    (folder / ("d" * 64)).mkdir()
    (folder / "README.txt").write_text("what this folder is for")
    (folder / ".DS_Store").write_bytes(b"")
    (folder / "link").symlink_to(elsewhere)
    (folder / "nowhere").symlink_to(elsewhere / "gone")
    (folder / ("e" * 64)).symlink_to(elsewhere / "file")
    os.mkfifo(folder / "pipe")
    return {"weights", "d" * 64, "README.txt", ".DS_Store", "link", "nowhere", "pipe"}


def test_a_sweep_leaves_what_a_cache_did_not_write(node_cache, tmp_path):
    survivors = foreign_entries(node_cache.folder, tmp_path / "elsewhere")
    put(node_cache, b"cached")
    sweep_node_cache([])
    assert kept(node_cache) == survivors
    assert (node_cache.folder / "weights" / "0123456789ab-vgg16.pth").exists()
    assert (tmp_path / "elsewhere" / "file").read_bytes() == b"somebody's", "a link is removed, not its target"


def test_room_is_made_beside_what_a_cache_did_not_write(tmp_path):
    cache = Cache(tmp_path / "cache", 100)
    survivors = foreign_entries(cache.folder, tmp_path / "elsewhere")
    old, new = put(cache, b"a" * 60, 20), put(cache, b"b" * 60, 10)
    assert kept(cache) == survivors | {new}
    assert old not in kept(cache)


def test_a_file_that_vanishes_meanwhile_is_no_error(node_cache, monkeypatch):
    names = [put(node_cache, bytes([letter])) for letter in range(3)]
    scan, unlink = os.scandir, Path.unlink

    def vanishing_scan(folder):
        found = scan(folder)
        (node_cache.folder / names[0]).unlink(missing_ok=True)
        return found

    def vanishing_unlink(path, missing_ok=False):
        if path.name == names[1]:
            unlink(path)
        unlink(path, missing_ok)

    monkeypatch.setattr(os, "scandir", vanishing_scan)
    monkeypatch.setattr(Path, "unlink", vanishing_unlink)
    sweep_node_cache([])
    assert kept(node_cache) == set()


def test_a_cached_file_that_cannot_be_removed_is_named(node_cache, monkeypatch):
    name = put(node_cache, b"scan")
    monkeypatch.setattr(
        Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    with pytest.raises(StoreError, match=rf"{name} cannot be removed \(Permission denied\): remove it and run"):
        sweep_node_cache([])
