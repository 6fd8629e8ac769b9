import time

import pytest

from mrcg.errors import IntegrityError, StoreError
from mrcg.releases.release import Release
from mrcg.retrieval import hot_swap
from mrcg.retrieval.hot_swap import ReleaseCache, ReleaseNotLoadedError, ReleaseWatcher


def release(number, encoder=None):
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
    def __init__(self):
        self.loaded, self.bad, self.at_once, self.residents = [], set(), [], None

    def __call__(self, one):
        if self.residents is not None:
            self.at_once.append(len(self.residents.numbers) + 1)
        if one.number in self.bad:
            raise IntegrityError(f"a file of release {one.number} is damaged")
        self.loaded.append(one.encoder)
        return f"models of {one.encoder}"


@pytest.fixture
def loader():
    return Loader()


@pytest.fixture
def residents(loader):
    made = ReleaseCache(lambda one: one.encoder, loader, 5.0)
    loader.residents = made
    made.prepare(release(1))
    return made


def test_two_are_here_while_the_next_comes_and_never_three(residents, loader):
    for number in range(2, 6):
        residents.prepare(release(number))
        assert residents.numbers == (number - 1, number)
    assert max(loader.at_once) == 2
    assert residents.of(5) == "models of e5"
    with pytest.raises(ReleaseNotLoadedError, match=r"release 3 is not loaded here \(here: 4, 5\)"):
        residents.of(3)


def test_what_two_releases_share_is_loaded_once(residents, loader):
    residents.prepare(release(2, "e1"))
    assert residents.of(1) is residents.of(2)
    residents.prepare(release(2, "e1"))
    assert loader.loaded == ["e1"]


def test_a_release_goes_when_nobody_asks_for_it_any_more(residents):
    residents.of(1)
    residents.prepare(release(2))
    residents.sweep(time.monotonic() + 100)
    assert residents.numbers == (1, 2), "nobody asked for the new one yet"
    residents.of(2)
    residents.sweep(time.monotonic() + 1)
    assert residents.numbers == (1, 2), "the time of grace is not over"
    residents.sweep(time.monotonic() + 6)
    assert residents.numbers == (2,)


def test_one_that_was_never_asked_for_goes_too(residents):
    residents.prepare(release(2))
    residents.of(2)
    residents.sweep()
    assert residents.numbers == (2,)


@pytest.fixture
def there(monkeypatch):
    found = {1: release(1), 2: release(2)}
    monkeypatch.setattr(hot_swap, "release_numbers", lambda store: sorted(found))
    monkeypatch.setattr(hot_swap, "read_release", lambda store, number: found[number])
    return found


def test_a_bad_release_is_refused_and_the_one_before_stays(residents, loader, there, caplog):
    loader.bad = {2}
    following = ReleaseWatcher(None, residents)
    following.step()
    following.step()
    assert residents.numbers == (1,)
    assert following.refused == {2: "a file of release 2 is damaged"}
    assert caplog.text.count("release 2 is refused") == 1
    there[3] = release(3)
    following.step()
    assert residents.numbers == (1, 3)


def test_what_nobody_asks_for_makes_room(residents, there):
    following = ReleaseWatcher(None, residents)
    residents.of(1)
    following.step()
    there[3] = release(3)
    residents.of(1)
    following.step()
    assert residents.numbers == (1, 3), "release 1 is what is answered under"


def test_at_the_start_the_newest_good_one_is_taken(loader, there):
    loader.bad = {2}
    residents = ReleaseCache(lambda one: one.encoder, loader, 5.0)
    following = ReleaseWatcher(None, residents)
    following.start(None)
    assert residents.numbers == (1,)
    following.step()
    assert residents.numbers == (1,), "the bad one was refused for good"
    loader.bad = {1, 2}
    with pytest.raises(IntegrityError, match="release 2 is damaged"):
        ReleaseWatcher(None, ReleaseCache(lambda one: one.encoder, loader, 5.0)).start(None)


def test_a_named_release_is_kept_until_another_is_named(residents, there):
    following = ReleaseWatcher(None, residents)
    following.start(1)
    following.step()
    assert (residents.numbers, following.wanted) == ((1,), 1)
    following.follow(2)
    following.step()
    assert residents.numbers == (1, 2)
    following.follow(None)
    assert following.wanted == 2


def test_a_store_that_cannot_be_read_is_looked_at_again(residents, there, monkeypatch, caplog):
    def broken(store):
        raise StoreError("the store does not answer")

    following = ReleaseWatcher(None, residents)
    with monkeypatch.context() as patched:
        patched.setattr(hot_swap, "release_numbers", broken)
        following.step()
    assert "cannot be looked at now" in caplog.text
    assert residents.numbers == (1,)
    following.step()
    assert residents.numbers == (1, 2)


def test_following_stops_when_told(residents, there):
    following = ReleaseWatcher(None, residents)
    following.run(0.001)
    deadline = time.monotonic() + 5
    while residents.numbers != (1, 2) and time.monotonic() < deadline:
        time.sleep(0.001)
    following.stop()
    assert residents.numbers == (1, 2)
