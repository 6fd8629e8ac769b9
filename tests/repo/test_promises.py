"""The repository keeps its own promises."""

import re
import subprocess
import sys
import tomllib

import pytest
from tests.conftest import REPOSITORY

from mrcg.cli.main import ORDER
from mrcg.config.loading import known_keys, recipe_names

TEXTS = [
    path
    for path in REPOSITORY.rglob("*")
    if path.suffix in {".md", ".py", ".toml", ".yaml", ".yml", ".txt"}
    and not {".venv", "demo"} & set(path.relative_to(REPOSITORY).parts)
]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def read(name):
    return (REPOSITORY / name).read_text(encoding="utf-8")


def test_platform_is_no_package():
    assert not (REPOSITORY / "platform" / "__init__.py").exists()


def test_ci_runs_make_test_and_nothing_else():
    lines = [line for line in read(".ci/run").splitlines() if line and not line.startswith("#")]
    assert lines == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "exec make test"]


def test_constraints_are_exact_and_name_no_host():
    lines = [line for line in read("constraints.txt").splitlines() if line]
    assert len(lines) > 100
    assert all(re.match(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==\S+( ; .+)?$", line) for line in lines)


def test_no_lock_file_and_no_index_settings():
    assert not (REPOSITORY / "uv.lock").exists()
    # Put together here, so that this file does not hold what it looks for.
    for word in ("index" + "-url", "find" + "-links", "py" + "pi.org"):
        assert [str(path) for path in TEXTS if word in path.read_text(encoding="utf-8")] == []


def test_commands_of_the_readme_exist():
    named = set(re.findall(r"`mrcg ([a-z-]+)", read("README.md"))) | set(
        re.findall(r"^\S*mrcg ([a-z-]+) ", read("README.md"), re.M)
    )
    assert named
    assert named <= set(ORDER)


def test_every_entry_point_can_be_loaded():
    for point in PROJECT["project"]["entry-points"]["mrcg.commands"]:
        assert point in ORDER


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "docs/design.md", "docs/corpus.md", "docs/results.md", "docs/serving.md"]
)
def test_links_and_settings_in_the_docs_exist(name):
    text = read(name)
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((REPOSITORY / name).parent / target).exists(), target
    for key in re.findall(r"--set ([a-z_.]+)=", text):
        assert key in [*known_keys(), "a.b"], key
    for recipe in re.findall(r"--recipe ([a-z]+)", text):
        assert recipe in recipe_names(), recipe


def test_the_python_example_of_the_readme_runs(library_store, scans, tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", read("README.md"), re.S)
    assert len(re.findall(r"^(?:from|import) ", example, re.M)) == 1
    (tmp_path / "store").symlink_to(library_store.root)
    (tmp_path / "scan.png").write_bytes(sorted(scans.rglob("*.png"))[0].read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 10


def test_make_targets_of_the_docs_exist():
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.M))
    for name in ("README.md", "CONTRIBUTING.md"):
        assert set(re.findall(r"(?:^|`)make ([a-z-]+)", read(name), re.M)) <= targets


def test_the_figures_of_the_readme_are_those_of_the_reports():
    done = subprocess.run(
        [sys.executable, "docs/figures.py", "--check"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(list((REPOSITORY / "docs" / "reports").glob("*.json"))) >= 4


def test_files_are_read_in_one_sitting():
    long = [path for path in TEXTS if path.suffix == ".py" and len(path.read_text().splitlines()) > 420]
    assert long == []


def test_no_pickle_is_read():
    own = [path for path in TEXTS if path.suffix == ".py" and "tests" not in path.parts]
    words = re.compile(
        r"import (pickle|joblib|dill)|allow_pickle=True|(?<!safetensors\.)torch\.load\((?!.*weights_only=True)"
    )
    assert [str(path) for path in own if words.search(path.read_text())] == []


def test_the_wheel_holds_packages_and_recipes(tmp_path):
    import zipfile

    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "mrcg/cli/main.py",
        "mrcg/index_build/costs.json",
        "mrcg_jobs/runner.py",
        "mrcg_serve/app.py",
        *(f"mrcg/recipes/{name}.yaml" for name in recipe_names()),
    ):
        assert wanted in names
    assert "platform/__init__.py" not in names
