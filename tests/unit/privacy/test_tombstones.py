import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.errors import IntegrityError
from mrcg.privacy.tombstones import FOLDER, REFRESH_SECONDS, Tombstones, entry_of, tombstone
from mrcg.storage.store import Store

IMAGES = [f"{number:032x}" for number in range(6)]


def stones(store, *images):
    tombstone(store, [entry_of(one) for one in images])


@given(st.lists(st.text(), unique=True, min_size=1, max_size=8))
def test_an_entry_is_a_hash_that_does_not_reveal_the_image(images):
    entries = [entry_of(one) for one in images]
    assert len(set(entries)) == len(images)
    assert all(len(entry) == 32 and set(entry) <= set("0123456789abcdef") for entry in entries)
    assert not set(entries) & set(images)


def test_the_log_does_not_contain_image_ids(store):
    stones(store, *IMAGES)
    (name,) = store.listdir(FOLDER)
    text = name + store.read_bytes(f"{FOLDER}/{name}").decode()
    assert sorted(json.loads(store.read_bytes(f"{FOLDER}/{name}"))) == sorted(map(entry_of, IMAGES))
    assert not [one for one in IMAGES if one in text]


def test_entries_are_never_removed(store):
    stones(store, IMAGES[0])
    names = store.listdir(FOLDER)
    stones(store, IMAGES[1], IMAGES[0])
    assert set(names) < set(store.listdir(FOLDER)), "a log: existing files are never overwritten"
    found = Tombstones(store)
    assert found.refresh()
    assert found.forbidden(IMAGES) == IMAGES[:2]


def test_existing_entries_and_empty_lists_write_nothing(store):
    tombstone(store, [])
    assert store.listdir(FOLDER) == []
    stones(store, *IMAGES[:2])
    stones(store, *reversed(IMAGES[:2]), IMAGES[0])
    assert len(store.listdir(FOLDER)) == 1


def test_an_empty_log_forbids_nothing(store):
    found = Tombstones(store)
    assert not found.refresh()
    assert found.forbidden(IMAGES) == []


def test_forbidden_keeps_the_given_order(store):
    stones(store, IMAGES[1], IMAGES[4])
    found = Tombstones(store)
    found.refresh()
    assert found.forbidden([IMAGES[4], IMAGES[0], IMAGES[1], IMAGES[4]]) == [IMAGES[4], IMAGES[1], IMAGES[4]]


class Counted(Store):
    """A store that counts how often it is listed and read."""

    def __init__(self, url):
        super().__init__(url)
        self.listed, self.read = 0, []

    def listdir(self, relative):
        self.listed += 1
        return super().listdir(relative)

    def read_bytes(self, relative):
        self.read.append(relative)
        return super().read_bytes(relative)


@pytest.fixture
def counted(tmp_path):
    return Counted(str(tmp_path / "store"))


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test advances."""
    now = [1000.0]
    monkeypatch.setattr("mrcg.privacy.tombstones.time.monotonic", lambda: now[0])
    return now


def test_the_log_is_listed_at_most_once_per_interval(counted, clock):
    found = Tombstones(counted)
    found.refresh()
    stones(counted, IMAGES[0])
    clock[0] += REFRESH_SECONDS * 0.9
    assert not found.refresh()
    assert found.forbidden(IMAGES) == []
    assert counted.listed == 1
    clock[0] += REFRESH_SECONDS * 0.2
    assert found.refresh()
    assert found.forbidden(IMAGES) == [IMAGES[0]]
    assert REFRESH_SECONDS <= 0.5, "a service hides an image within a second"


def test_each_file_is_read_once(counted, clock):
    found = Tombstones(counted)
    for number in range(4):
        stones(counted, IMAGES[number])
        clock[0] += 1
        assert found.refresh() == [entry_of(IMAGES[number])], "only new entries"
        clock[0] += 1
        assert found.refresh() == []
    assert len(counted.read) == len(set(counted.read)) == 4
    assert found.forbidden(IMAGES) == IMAGES[:4]


def test_other_files_in_the_folder_are_not_read(counted, clock):
    counted.create(f"{FOLDER}/note.txt", b"not an entry")
    assert not Tombstones(counted).refresh()
    assert counted.read == []


def test_every_refresh_fails_while_the_log_cannot_be_read(counted, clock):
    """Otherwise searches between two refreshes would return forbidden images."""
    stones(counted, IMAGES[0])
    counted.write_bytes(f"{FOLDER}/zz.json", b"[")
    found = Tombstones(counted)
    for _ in range(3):
        with pytest.raises(IntegrityError, match="is not JSON"):
            found.refresh()
    counted.write_bytes(f"{FOLDER}/zz.json", json.dumps([entry_of(IMAGES[3])]).encode())
    new = found.refresh()
    assert sorted(new) == sorted(map(entry_of, (IMAGES[0], IMAGES[3]))), (
        "entries that were read before the failure are returned, too"
    )
    assert found.forbidden(IMAGES) == [IMAGES[0], IMAGES[3]]
