"""No entry of a folder ends the walk: every error of every call becomes an entry with a reason."""

import builtins
import errno
import os
import stat
from types import SimpleNamespace

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from tests import factories

from mrcg.corpus.folder_walk import UNUSABLE, unusable
from mrcg.corpus.listing import TRANSIENT_REASONS
from mrcg.corpus.sources import open_source, survey
from mrcg.errors import SourceError

ERRORS = [
    *(kind(errno.EIO, "no name of anybody") for kind in vars(builtins).values()
      if isinstance(kind, type) and issubclass(kind, OSError) and kind is not OSError),
    *(OSError(number, os.strerror(number)) for number in (errno.ELOOP, errno.EIO, errno.ESTALE, errno.ENAMETOOLONG)),
]  # fmt: skip


def tree(tmp_path):
    for name in ("a/1.png", "b/2.png", "c/3.png"):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_bytes(factories.bomb(40))
    return tmp_path


def entries(source):
    return {file.key: file.stamp for file in source.walk() if file.size < 0}


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("call", ["scandir", "is_dir", "stat", "read"])
def test_every_error_of_every_call_is_one_entry(call, error, tmp_path, monkeypatch):
    source, place = open_source(str(tree(tmp_path))), str(tmp_path / "b")
    scandir, state = os.scandir, os.stat

    def failing(*_, **__):
        raise error

    class Children(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    def listed(path):
        if call == "scandir" and str(path) == place:
            raise error
        with scandir(path) as children:
            found = list(children)
        if call == "is_dir" and str(path) == place:
            return Children([SimpleNamespace(name="2.png", is_dir=failing)])
        return Children(found)

    def stated(path, *more, **named):
        if call == "stat" and str(path) == f"{place}/2.png":
            raise error
        return state(path, *more, **named)

    monkeypatch.setattr(os, "scandir", listed)
    monkeypatch.setattr(os, "stat", stated)
    if call == "read":
        cat = LocalFileSystem.cat_file
        monkeypatch.setattr(
            LocalFileSystem,
            "cat_file",
            lambda fs, path, *more, **named: failing() if path == f"{place}/2.png" else cat(fs, path, *more, **named),
        )
    expected = {"scandir": {"b/": unusable(error)}, "stat": {"b/2.png": unusable(error)}}.get(call, {})
    assert entries(source) == expected
    assert {file.key for file in source.walk() if file.size >= 0} >= {"a/1.png", "c/3.png"}
    segment = factories.ingest(source.walk(), source.read, factories.rules_of())
    wanted = expected or ({"b/2.png": unusable(error)} if call == "read" else {})
    got = {row["source_key"]: row["reason"] for row in segment.quarantine.to_pylist() if row["reason"] in UNUSABLE}
    assert got == wanted
    assert survey(source).files == 3


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_a_source_that_cannot_be_listed_at_all_is_refused_in_one_line(error, tmp_path, monkeypatch):
    source = open_source(str(tree(tmp_path)))

    def failing(_):
        raise error

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(SourceError, match="cannot be listed"):
        list(source.walk())


def test_errors_of_an_object_store_are_entries_too(monkeypatch):
    fs = MemoryFileSystem()
    for name in ("a/1.png", "b/2.png"):
        fs.pipe_file(f"/failing/{name}", b"x")
    listed = MemoryFileSystem.ls

    def ls(fs, path, *more, **named):
        if path.endswith("/b"):
            raise PermissionError
        return listed(fs, path, *more, **named)

    monkeypatch.setattr(MemoryFileSystem, "ls", ls)
    assert entries(open_source("memory://failing")) == {"b/": "unreadable"}
    fs.rm("/failing", recursive=True)


def test_links_to_themselves_pipes_and_sockets_have_their_reason(tmp_path):
    os.symlink("loop.png", tmp_path / "loop.png")
    os.symlink("nowhere", tmp_path / "gone.png")
    os.mkfifo(tmp_path / "pipe.png")
    os.mknod(tmp_path / "socket.png", stat.S_IFSOCK | 0o600)
    assert entries(open_source(str(tmp_path))) == {
        "loop.png": "link_loop", "gone.png": "missing", "pipe.png": "not_a_file", "socket.png": "not_a_file",
    }  # fmt: skip


def test_names_of_any_bytes_are_escaped_and_read(tmp_path):
    for name in (b"\xff\xfe.png", b"plain\\xff.png", "m\u00e9n.png".encode()):
        (tmp_path / os.fsdecode(name)).write_bytes(name)
    source = open_source(str(tmp_path))
    files = list(source.walk())
    assert {file.key for file in files} == {"m\u00e9n.png", "plain\\xff.png", "\\xff\\xfe.png"}
    assert {source.read(file) for file in files} == {b"\xff\xfe.png", b"plain\\xff.png", "m\u00e9n.png".encode()}
    assert all(file.key.encode() for file in files)


def test_what_cannot_be_read_now_is_tried_again():
    assert set(UNUSABLE) <= TRANSIENT_REASONS
