"""Fixtures. ``library_store`` is made by library calls alone; ``ray_store`` by the real pipeline on Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from mrcg.imaging.samples import write_samples
from mrcg.store import Store
from tests import making

hypothesis.settings.register_profile("mrcg", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("mrcg")

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def _environment() -> None:
    # A user's own habits must not steer the tests.
    for name in ("MRCG_STORE", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    os.environ.setdefault("COLUMNS", "120")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(str(tmp_path / "store"))


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 96 phantoms."""
    folder = tmp_path_factory.mktemp("scans")
    write_samples(folder, 96, seed=1)
    return folder


@pytest.fixture(scope="session")
def library_store(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a release, made without Ray."""
    store = Store(str(tmp_path_factory.mktemp("library") / "store"))
    making.make_release(store, scans)
    return store


@pytest.fixture(scope="session")
def ray_store(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store with a release, made by ``mrcg run``."""
    store = Store(str(tmp_path_factory.mktemp("ray") / "store"))
    done = making.mrcg("run", "--source", str(scans), "--store", store.url, *making.TINY)
    assert done.returncode == 0, done.stderr
    yield store
