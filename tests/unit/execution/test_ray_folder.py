"""A local Ray starts where its usual folders cannot be used, or one line says what to do."""

import os

import pytest

from mrcg.errors import UsageError
from mrcg.execution import ray_environment


def options(monkeypatch, folder, usable):
    """The options with some temporary folder, where only some folders can be written."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(ray_environment.tempfile, "gettempdir", lambda: folder)
    monkeypatch.setattr(ray_environment, "_is_writable", lambda one: one in usable)
    return ray_environment.init_options(None)["_temp_dir"]


@pytest.mark.parametrize(
    ("folder", "usable", "expected"),
    [
        ("/own", ["/own/ray"], "/own/ray"),
        ("/own", [f"/own/ray-{os.getuid()}", "/tmp/ray"], f"/own/ray-{os.getuid()}"),
        ("/own", ["/tmp/ray"], "/tmp/ray"),
        ("/" + "long" * 20, ["/" + "long" * 20 + "/ray", "/tmp/ray"], "/tmp/ray"),
    ],
)
def test_another_folder_is_used_where_the_usual_one_cannot_be(monkeypatch, folder, usable, expected):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    assert options(monkeypatch, folder, usable) == expected


def test_where_no_folder_can_be_used_the_message_names_the_variable(monkeypatch):
    with pytest.raises(UsageError, match="set TMPDIR to a short path of a folder of your own"):
        options(monkeypatch, "/own", [])


def test_a_cluster_elsewhere_has_its_own_folders():
    assert "_temp_dir" not in ray_environment.init_options("10.0.0.1:6379")


def test_a_home_that_cannot_be_written_needs_no_token_file(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/proc/nobody")
    ray_environment.init_options(None)
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))
    ray_environment.init_options(None)
    assert "RAY_AUTH_TOKEN" not in os.environ
