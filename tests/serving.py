"""A running service, and answers compared with those of the pipeline in this process."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator

import pytest

from mrcg.api.responses import Answer
from tests import factories

TOLERANCE = 1e-4
#: No stage grows: for tests that count processes or their memory.
ONE_OF_EACH = tuple(
    word for stage in ("embedder", "searcher", "reranker") for word in ("--set", f"serve.{stage}.max_replicas=1")
)


@contextlib.contextmanager
def serving(store: str, *words: str) -> Iterator[str]:
    """URL of ``mrcg serve`` on a store; it has to end well on SIGTERM."""
    with started(store, *words) as (url, _):
        yield url


@contextlib.contextmanager
def started(store: str, *words: str) -> Iterator[tuple[str, int]]:
    """The same with the process' number."""
    command = [factories.MRCG, "serve", "--store", store, "--port", str(factories.free_port()), "--json", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = next((line for line in process.stdout if line.startswith("{")), None)
        assert line is not None, process.communicate()[1]
        yield json.loads(line)["url"], process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


def assert_alike(remote: Answer, local: Answer) -> None:
    """Same hits; order may differ only where scores differ by less than the tolerance."""
    assert remote.release == local.release
    assert (remote.reranked, remote.order) == (local.reranked, local.order)
    by_id = {hit.image_id: hit for hit in local.hits}
    assert {hit.image_id for hit in remote.hits} == set(by_id)
    for hit, twin in zip(remote.hits, local.hits, strict=True):
        same = by_id[hit.image_id]
        assert (hit.label, hit.ann_rank) == (same.label, same.ann_rank)
        assert hit.distance == pytest.approx(same.distance, rel=1e-3, abs=1e-3)
        assert (hit.rank, hit.similarity) == (twin.rank, pytest.approx(same.similarity, abs=1e-3))
        if hit.score is not None:
            assert hit.score == pytest.approx(same.score, abs=TOLERANCE)
            assert hit.probability == pytest.approx(same.probability, abs=10 * TOLERANCE)
            assert hit.score == pytest.approx(twin.score, abs=TOLERANCE) or hit.image_id == twin.image_id
