import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.cache import BYTES, DEFAULT_BYTES, FOLDER, Cache
from mrcg.errors import UsageError
from mrcg.hashing import sha256


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
