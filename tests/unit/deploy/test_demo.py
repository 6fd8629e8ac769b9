"""The demo's own parts; `make demo` runs all of it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[3] / "deploy" / "demo.py"


@pytest.fixture
def demo(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("demo", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    return module


def saying(*lines, code=0):
    text = "".join(f"print({line!r}, flush=True);" for line in lines)
    return subprocess.Popen(
        [sys.executable, "-c", f"{text} raise SystemExit({code})"], stdout=subprocess.PIPE, text=True
    )


def test_a_command_is_printed_as_one_would_type_it(demo, capsys):
    assert demo.show("sample", "a folder", "--images", "4")[1:] == ["sample", "a folder", "--images", "4"]
    assert "$ mrcg sample 'a folder' --images 4" in capsys.readouterr().out


def test_a_command_that_fails_ends_the_demo_with_its_code(demo):
    with pytest.raises(SystemExit) as ended:
        demo.run("query", "no-such-scan.png", "--store", "no-such-store")
    assert ended.value.code == 2


def test_commands_run_one_after_the_other(demo):
    demo.run("sample", str(demo.HELD_OUT), "--images", "4", "--seed", "2")
    assert len(sorted(demo.HELD_OUT.glob("*/*.png"))) == 4


def test_the_url_is_in_the_first_json_line_of_the_service(demo):
    with saying("loading", '{"url": "http://127.0.0.1:8000"}', "later") as service:
        assert demo.wait_ready(service) == "http://127.0.0.1:8000"


def test_a_service_that_does_not_come_up_ends_the_demo(demo):
    with saying("no release", code=3) as service, pytest.raises(SystemExit, match="the service exited with code 3"):
        demo.wait_ready(service)


def test_the_newest_report_is_shown(demo, capsys):
    for number, name in enumerate(("old", "new")):
        folder = demo.STORE / "reports" / name / "content"
        folder.mkdir(parents=True)
        (folder / "tables.md").write_text(f"the {name} one")
        os.utime(folder / "tables.md", (number, number))
    demo.show_report()
    out = capsys.readouterr().out
    assert "the new one" in out
    assert "the old one" not in out
    assert str(Path("reports") / "new" / "content" / "retrieval.png") in out.replace("\n", "")
