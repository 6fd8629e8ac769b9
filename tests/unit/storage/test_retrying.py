"""Calls on a remote file system are made again where that can help."""

import time

import fsspec
import pytest

from mrcg.errors import StoreError
from mrcg.storage.filesystem import TRIES, retrying

REMOTE, LOCAL = fsspec.filesystem("memory"), fsspec.filesystem("file")


class Call:
    """Fails with some errors, then answers."""

    def __init__(self, *errors):
        self.errors, self.count = list(errors), 0

    def __call__(self):
        self.count += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


@pytest.fixture
def pauses(monkeypatch):
    found = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


def test_a_call_that_fails_for_a_while_succeeds_after_growing_pauses(pauses):
    call = Call(*[OSError("SlowDown")] * (TRIES - 1))
    assert retrying(REMOTE, call) == "answer"
    assert pauses == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2])


def test_a_call_that_always_fails_is_an_error_of_the_store_with_its_cause(pauses):
    last = OSError("503")
    with pytest.raises(StoreError, match=rf"failed {TRIES} times \(503\): try again later") as raised:
        retrying(REMOTE, Call(*[OSError("500")] * (TRIES - 1), last))
    assert raised.value.__cause__ is last


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError, IsADirectoryError, ValueError])
def test_an_error_that_stays_is_raised_at_once(error, pauses):
    call = Call(error("no"))
    with pytest.raises(error):
        retrying(REMOTE, call)
    assert (call.count, pauses) == (1, [])


def test_a_local_file_system_is_asked_once(pauses):
    call = Call(OSError("disk"))
    with pytest.raises(OSError, match="disk"):
        retrying(LOCAL, call)
    assert call.count == 1
