"""Ray clusters for tests."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

_CODE = (
    "from mrcg.execution import ray_environment; ray_environment.prepare(); import ray, sys; ray_environment.connect(ray, None);"
    "print(ray.get_runtime_context().gcs_address, flush=True); sys.stdin.read(); ray.shutdown()"
)


@contextlib.contextmanager
def ray_cluster() -> Iterator[str]:
    """Address of a cluster that outlives the runs on it, as a hospital's does; its nodes have the environment of now."""
    process = subprocess.Popen([sys.executable, "-c", _CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.stdin.close()
    process.wait(timeout=60)
    process.stdout.close()
