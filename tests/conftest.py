"""Fixtures. ``library_store`` is made by library calls alone; ``ray_run`` by the real pipeline on Ray."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from filelock import FileLock
from xdist.scheduler import LoadScopeScheduling

from mrcg.execution import ray_environment
from mrcg.imaging.samples import write_samples
from mrcg.releases.release import Release, read_release
from mrcg.storage.store import Store
from tests import factories
from tests.clusters import ray_cluster
from tests.serving import ONE_OF_EACH, serving, started

hypothesis.settings.register_profile("mrcg", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("mrcg")

REPOSITORY = Path(__file__).parents[1]
#: Fixtures that are a running service, and the modules that share it.
SERVICES = {
    "service": ("congruence/test_grpc.py", "congruence/test_service.py", "web/test_http.py"),
    "small_service": ("faults/test_uploads.py", "web/test_openapi.py"),
    "watched_service": ("web/test_strangers.py", "web/test_watching.py"),
}


# Before any test module imports Ray, which reads these variables once.
ray_environment.prepare()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run modules with slow tests first, those of a running service after the others, and quick modules at the end.

    Two processes then end at about the same time, and a service is up for as short as can be.
    """
    for item in items:
        slow = item.get_closest_marker("slow")  # others have fakes of that name
        used = [name for name in SERVICES if slow and name in getattr(item, "fixturenames", ())]
        assert used in ([], [_service_of(item.nodeid)]), f"add the module of {item.nodeid} to SERVICES in {__file__}"
    long = {_module_of(item.nodeid) for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (_module_of(item.nodeid) not in long, _service_of(item.nodeid)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Side by side (`-n 2`), tests that share a service or a module's stores stay in one process."""
    return _Scheduling(config, log)


class _Scheduling(LoadScopeScheduling):
    # Not `--dist loadgroup`: pytest-xdist 3.8 writes groups to an attribute that pytest 9.2 no longer reads.
    def _split_scope(self, nodeid: str) -> str:
        return _service_of(nodeid) or _module_of(nodeid)


def _module_of(nodeid: str) -> str:
    return nodeid.split("::")[0]


def _service_of(nodeid: str) -> str:
    module = _module_of(nodeid).removeprefix("tests/")
    return next((name for name, modules in SERVICES.items() if module in modules), "")


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
    factories.make_release(store, scans)
    return store


@dataclass(frozen=True)
class RayRun:
    """What ``mrcg run`` made of a messy source."""

    source: Path
    store: Store
    result: dict[str, Any]
    stderr: str

    @property
    def release(self) -> Release:
        return read_release(self.store)


@pytest.fixture(scope="session")
def ray_run(tmp_path_factory: pytest.TempPathFactory) -> RayRun:
    """A run over phantoms with bad files among them and a class of one image; two workers train the encoder."""
    # Test processes side by side (pytest-xdist) use one: whoever comes first makes it.
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "ray_run"
    source, store, made = folder / "messy", Store(str(folder / "store")), folder / "made.json"
    folder.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not made.exists():
            write_samples(source, 96, seed=1)
            factories.add_bad_files(source)
            words = ("run", "--source", str(source), "--store", store.url, *factories.TWO_WORKERS, "--json")
            done = factories.mrcg(*words, timeout=500)
            assert done.returncode == 0, done.stderr
            made.write_text(json.dumps([done.stdout, done.stderr]))
    stdout, stderr = json.loads(made.read_text())
    return RayRun(source, store, json.loads(stdout), stderr)


@pytest.fixture(scope="session")
def grpc_port() -> int:
    """Port on which the service takes searches over gRPC."""
    return factories.free_port()


@pytest.fixture(scope="session")
def service(ray_run: RayRun, grpc_port: int) -> Iterator[str]:
    """URL of ``mrcg serve`` on that store."""
    with serving(ray_run.store.url, "--grpc-port", str(grpc_port)) as url:
        yield url


@pytest.fixture(scope="session")
def small_service(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """URL and process id of ``mrcg serve``, one replica of each stage, on a store whose releases tests may change."""
    store = Store(str(tmp_path_factory.mktemp("small_service") / "store"))
    factories.make_release(store, scans)
    with started(store.url, *ONE_OF_EACH) as served:
        yield served


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """Address of a Ray cluster that all tests of this process share."""
    with ray_cluster() as address:
        yield address
