"""A log that only grows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.errors import StoreError
from mrcg.storage.append_log import AppendLog
from mrcg.storage.store import Store

additions = st.lists(st.lists(st.text(min_size=1, max_size=4), max_size=5), max_size=5)


@given(additions)
def test_all_that_was_added_is_in_it_whatever_the_order(tmp_path_factory, added):
    store = Store(str(tmp_path_factory.mktemp("log") / "store"))
    log, backwards = AppendLog(store, "log/one"), AppendLog(store, "log/other")
    for entries in added:
        log.add(entries)
    for entries in reversed(added):
        backwards.add(reversed(entries))
    assert log.entries() == backwards.entries() == {entry for entries in added for entry in entries}
    assert store.listdir("log/one") == store.listdir("log/other")


def test_adding_the_same_again_changes_nothing(store):
    log = AppendLog(store, "log/one")
    log.add(["b", "a"])
    log.add(["a", "b", "a"])
    log.add([])
    assert len(store.listdir("log/one")) == 1


def test_only_files_that_were_not_read_are_read(store):
    log = AppendLog(store, "log/one")
    log.add(["a"])
    first = log.unread(())
    log.add(["b"])
    assert list(log.unread(first).values()) == [["b"]]


def test_a_log_that_cannot_be_read_is_an_error(store, monkeypatch):
    log = AppendLog(store, "log/one")
    log.add(["a"])

    def fails(path):
        raise StoreError("no answer")

    monkeypatch.setattr(store, "read_json", fails)
    with pytest.raises(StoreError):
        log.entries()
