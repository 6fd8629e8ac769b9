import time

import pytest

from mrcg.errors import IntegrityError, ReleaseNotLoadedError, StoreError
from mrcg.releases.release import Release
from mrcg.retrieval import hot_swap
from mrcg.retrieval.hot_swap import ReleaseCache, ReleaseWatcher


def make_release(number, encoder=None):
    return Release(
        number=number,
        corpus="c",
        encoder=encoder or f"e{number}",
        index="i",
        reranker="r",
        report="p",
        neighbours=50,
        ood_threshold=None,
        protocol="paper",
        reranked_map=0.9,
        created="2026-01-01",
        reason="test",
    )


class Loader:
    """Loads names instead of models; counts the releases in memory during each load."""

    def __init__(self):
        self.loaded, self.bad, self.counts, self.cache = [], set(), [], None

    def __call__(self, release):
        if self.cache is not None:
            self.counts.append(len(self.cache.numbers) + 1)
        if release.number in self.bad:
            raise IntegrityError(f"a file of release {release.number} is damaged")
        self.loaded.append(release.encoder)
        return f"models of {release.encoder}"


def make_cache(loader):
    return ReleaseCache(lambda release: release.encoder, loader, 5.0)


@pytest.fixture
def loader():
    return Loader()


@pytest.fixture
def cache(loader):
    cache = make_cache(loader)
    loader.cache = cache
    cache.prepare(make_release(1))
    return cache


def test_at_most_two_releases_are_in_memory_even_during_a_load(cache, loader):
    for number in range(2, 6):
        cache.prepare(make_release(number))
        assert cache.numbers == (number - 1, number)
    assert max(loader.counts) == 2
    assert cache.get(5) == "models of e5"
    with pytest.raises(ReleaseNotLoadedError, match=r"release 3 is not loaded here \(loaded: 4, 5\)"):
        cache.get(3)


def test_what_two_releases_share_is_loaded_once(cache, loader):
    cache.prepare(make_release(2, "e1"))
    assert cache.get(1) is cache.get(2)
    cache.prepare(make_release(2, "e1"))
    assert loader.loaded == ["e1"]


def test_an_old_release_is_evicted_after_the_grace_period(cache):
    cache.get(1)
    cache.prepare(make_release(2))
    cache.evict_unused(time.monotonic() + 100)
    assert cache.numbers == (1, 2), "the new release is not in use yet"
    cache.get(2)
    cache.evict_unused(time.monotonic() + 1)
    assert cache.numbers == (1, 2), "the grace period is not over"
    cache.evict_unused(time.monotonic() + 6)
    assert cache.numbers == (2,)


def test_a_release_that_was_never_used_is_evicted(cache):
    cache.prepare(make_release(2))
    cache.get(2)
    cache.evict_unused()
    assert cache.numbers == (2,)


@pytest.fixture
def releases(monkeypatch):
    """Releases of the store, by number."""
    releases = {1: make_release(1), 2: make_release(2)}
    monkeypatch.setattr(hot_swap, "release_numbers", lambda store: sorted(releases))
    monkeypatch.setattr(hot_swap, "read_release", lambda store, number: releases[number])
    return releases


def test_a_bad_release_is_rejected_once_and_the_previous_one_stays(cache, loader, releases, caplog):
    loader.bad = {2}
    watcher = ReleaseWatcher(None, cache)
    watcher.step()
    watcher.step()
    assert cache.numbers == (1,)
    assert watcher.rejected == {2: "a file of release 2 is damaged"}
    assert caplog.text.count("release 2 is rejected, the previous release keeps serving") == 1
    releases[3] = make_release(3)
    watcher.step()
    assert cache.numbers == (1, 3)


def test_the_least_recently_used_release_is_evicted_for_a_new_one(cache, releases):
    watcher = ReleaseWatcher(None, cache)
    cache.get(1)
    watcher.step()
    releases[3] = make_release(3)
    cache.get(1)
    watcher.step()
    assert cache.numbers == (1, 3), "release 1 is in use"


def test_start_loads_the_newest_good_release(loader, releases):
    loader.bad = {2}
    cache = make_cache(loader)
    watcher = ReleaseWatcher(None, cache)
    watcher.start(None)
    assert cache.numbers == (1,)
    watcher.step()
    assert cache.numbers == (1,), "the bad release stays rejected"
    loader.bad = {1, 2}
    with pytest.raises(IntegrityError, match="release 2 is damaged"):
        ReleaseWatcher(None, make_cache(loader)).start(None)


def test_a_followed_release_is_kept_until_another_is_followed(cache, releases):
    watcher = ReleaseWatcher(None, cache)
    watcher.start(1)
    watcher.step()
    assert (cache.numbers, watcher.target) == ((1,), 1)
    watcher.follow(2)
    watcher.step()
    assert cache.numbers == (1, 2)
    watcher.follow(None)
    assert watcher.target == 2


def test_an_unreadable_store_is_retried(cache, releases, monkeypatch, caplog):
    def broken(store):
        raise StoreError("the store does not answer")

    watcher = ReleaseWatcher(None, cache)
    with monkeypatch.context() as patched:
        patched.setattr(hot_swap, "release_numbers", broken)
        watcher.step()
    assert "cannot check the store for new releases" in caplog.text
    assert cache.numbers == (1,)
    watcher.step()
    assert cache.numbers == (1, 2)


def test_a_watcher_runs_in_the_background_until_it_is_stopped(cache, releases):
    watcher = ReleaseWatcher(None, cache)
    watcher.run(0.001)
    deadline = time.monotonic() + 5
    while cache.numbers != (1, 2) and time.monotonic() < deadline:
        time.sleep(0.001)
    watcher.stop()
    assert cache.numbers == (1, 2)
