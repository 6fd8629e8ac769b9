import json
import subprocess
import sys

import pytest
from tests.making import make_release

from mrcg.cli import ORDER, main


def run(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    out = capsys.readouterr()
    return ended.value.code, out.out, out.err


@pytest.mark.parametrize("command", ["", "run", "query"])
def test_help_imports_neither_torch_nor_ray(command):
    code = (
        "import sys; from mrcg.cli import main\n"
        f"try: main({[command, '--help'] if command else ['--help']})\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'ray', 'faiss', 'torchvision'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ORDER)
def test_every_command_has_help(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert "Usage" in out


def test_sample_writes_and_says_so(capsys, tmp_path):
    assert run(capsys, "sample", tmp_path / "x", "--images", 8)[:2] == (
        0,
        f"8 phantoms in 8 files in {tmp_path / 'x'} (8 written, 0 were there)\n",
    )
    code, out, _ = run(capsys, "sample", tmp_path / "x", "--images", 8, "--json")
    assert (code, json.loads(out)["written"]) == (0, 0)


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["run", "--source", "nowhere", "--store", "s"], 1, "mrcg: --source nowhere: no such folder"),
        (
            ["run", "--source", ".", "--store", "s", "--set", "encoder.epoch=1"],
            2,
            "unknown key encoder.epoch; the nearest known key is encoder.epochs",
        ),
        (["run", "--source", ".", "--store", "s", "--recipe", "none-such"], 2, "no recipe none-such: shipped are demo"),
        (
            ["run", "--source", "tests", "--store", "s", "--set", "encoder.weights=w.safetensors"],
            1,
            "encoder.weights = w.safetensors: no such file",
        ),
        (["query", "no-image.png", "--store", "s"], 2, "no-image.png cannot be read: No such file"),
        (["query", "README.md"], 2, "say where to search: --url of a running service, or --store"),
        (
            ["query", "README.md", "--url", "http://127.0.0.1:9"],
            1,
            "cannot be reached (ConnectError): is `mrcg serve` running there?",
        ),
        (["releases", "show", "--store", "nothing-here"], 1, "has no release"),
        (["store", "show", "abc", "--store", "nothing-here"], 1, "no version in"),
        (
            ["serve", "--store", "s", "--host", "0.0.0.0"],
            2,
            "--host 0.0.0.0: without authentication only loopback is served",
        ),
        (["run"], 2, "--source"),
        (["nothing"], 2, "nothing"),
        (["store", "ls", "--store", "foo://x"], 2, "foo://x cannot be opened"),
        (["run", "--source", "tests", "--store", "tests/store"], 2, "lies in --source tests: it would be ingested"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_line_with_an_exit_code(capsys, monkeypatch, tmp_path, words, code, line):
    got, _, err = run(capsys, *words)
    assert got == code
    assert line in " ".join(err.split())
    assert "Traceback" not in err


def test_debug_shows_the_traceback():
    done = subprocess.run(
        [sys.executable, "-c", "from mrcg.cli import main; main()", "releases", "show", "--store", "x", "--debug"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "NotFoundError" in done.stderr


def test_a_store_can_be_looked_at_searched_and_rolled_back(capsys, library_store, scans, tmp_path, monkeypatch):
    monkeypatch.setenv("MRCG_STORE", library_store.url)
    code, out, _ = run(capsys, "store", "ls", "--json")
    kinds = [entry["kind"] for entry in json.loads(out)]
    assert (code, len(kinds), set(kinds) >= {"corpus", "reports"}) == (0, 8, True)
    version = json.loads(out)[0]["version"]
    assert json.loads(run(capsys, "store", "show", version[:8], "--json")[1])["kind"] == "corpus"
    assert "images 96" in run(capsys, "store", "ls")[1].replace("\n", " ")
    assert version in run(capsys, "store", "show", f"corpus/{version}")[1]
    assert json.loads(run(capsys, "releases", "list", "--json")[1])[0]["number"] == 1
    assert "Releases" in run(capsys, "releases", "list")[1]
    assert "encoder" in run(capsys, "releases", "show")[1]
    assert run(capsys, "gc", "--json")[:2] == (0, '{"removed": []}\n')
    code, _, err = run(capsys, "releases", "rollback")
    assert (code, "no release before the current one" in err) == (1, True)
    scan = sorted(scans.rglob("*.png"))[0]
    code, out, _ = run(capsys, "query", scan, "-k", 3, "--out", tmp_path / "hits.png", "--json")
    assert (code, len(json.loads(out)["hits"])) == (0, 3)
    assert (tmp_path / "hits.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = run(capsys, "query", scan, "-k", 999)
    assert (code, "k = 999: ask for 1 to 20 hits" in err) == (2, True)


def test_promote_by_hand(capsys, scans, store):
    release = make_release(store, scans)
    code, out, _ = run(capsys, "releases", "promote", release.report, "--store", store.url)
    assert (code, out) == (0, "release 1 serves exactly this already\n")
