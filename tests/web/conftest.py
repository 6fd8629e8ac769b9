"""A service whose log, spans and replicas are looked at."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.factories import make_release
from tests.serving import ONE_OF_EACH, started

from mrcg.storage.store import Store


@dataclass(frozen=True)
class Watched:
    """A running service: its URL, the number of its process, Ray's folder, and the file of its spans."""

    url: str
    pid: int
    folder: Path
    spans: Path


@pytest.fixture(scope="session")
def watched_service(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    store = Store(str(tmp_path_factory.mktemp("watched") / "store"))
    make_release(store, scans)
    folder = Path(tempfile.mkdtemp(prefix="mrcg-", dir="/tmp"))  # the paths of Unix sockets must be short
    spans = tmp_path_factory.mktemp("spans") / "spans.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(folder))
        patch.setenv("MRCG_TEST_SPANS", str(spans))
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
        with started(store.url, *ONE_OF_EACH, "--spans", "spans_to_file:processors") as (url, pid):
            yield Watched(url, pid, folder, spans)
    shutil.rmtree(folder, ignore_errors=True)  # Ray processes that are still ending may write their logs
