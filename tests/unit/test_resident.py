import threading
import time

import pytest

from mrcg import resident
from mrcg.errors import IntegrityError
from mrcg.release import Release
from mrcg.resident import Follower, NotResidentError, Residents


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
    made = Residents(lambda one: one.encoder, loader, 5.0)
    loader.residents = made
    made.prepare(release(1))
    return made


def test_two_are_here_while_the_next_comes_and_never_three(residents, loader):
    for number in range(2, 6):
        residents.prepare(release(number))
        assert residents.numbers == (number - 1, number)
    assert max(loader.at_once) == 2
    assert residents.of(5) == "models of e5"
    with pytest.raises(NotResidentError, match="release 3 is not loaded here: 4, 5 are"):
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


def test_a_bad_release_is_refused_and_the_one_before_stays(residents, loader, monkeypatch, caplog):
    loader.bad = {2}
    there = {1: release(1), 2: release(2)}
    monkeypatch.setattr(resident, "release_numbers", lambda store: sorted(there))
    monkeypatch.setattr(resident, "read_release", lambda store, number: there[number])
    follower = Follower(None, residents)
    follower.step()
    follower.step()
    assert residents.numbers == (1,)
    assert follower.refused == {2: "a file of release 2 is damaged"}
    assert caplog.text.count("release 2 is refused") == 1
    there[3] = release(3)
    follower.step()
    assert residents.numbers == (1, 3)


def test_a_follower_stops_when_told(residents, monkeypatch):
    seen = threading.Event()
    monkeypatch.setattr(resident, "release_numbers", lambda store: seen.set() or [1])
    stop = threading.Event()
    thread = threading.Thread(target=Follower(None, residents).follow, args=(stop, 0.001))
    thread.start()
    assert seen.wait(5)
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
