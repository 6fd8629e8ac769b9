"""``deploy/serve.yaml`` is what Serve's own command takes, and every knob of it is the recipe's."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema
from tests.factories import free_port

from mrcg.api.client import Client
from mrcg.api.requests import SearchParams
from mrcg.retrieval.local import LocalPipeline

FILE = Path(__file__).parents[2] / "deploy" / "serve.yaml"


def test_it_is_a_config_of_serve_and_listens_on_loopback_only():
    config = ServeDeploySchema.model_validate(yaml.safe_load(FILE.read_text()))
    assert config.http_options.host == "127.0.0.1"
    assert [one.import_path for one in config.applications] == ["mrcg_serve.app:build"]


@pytest.mark.slow
def test_serve_run_takes_it_as_it_is_but_for_the_place_of_the_store(library_store, scans, tmp_path):
    port = free_port()
    text = FILE.read_text().replace("store: store ", f"store: {library_store.url} ")
    path = tmp_path / "serve.yaml"
    path.write_text(text.replace("port: 8000", f"port: {port}"))
    command = [str(Path(sys.executable).parent / "serve"), "run", str(path)]
    # A Ray of its own, whatever runs on this machine.
    environment = {**os.environ, "RAY_ADDRESS": "local", "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    image, url = sorted(scans.rglob("*.png"))[3].read_bytes(), f"http://127.0.0.1:{port}"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, cwd=tmp_path, preexec_fn=_heed_interrupts
        )
    try:
        _wait(url, process, tmp_path / "log")
        with Client(url) as client:
            answer = client.search(image, SearchParams(k=5))
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:  # it would stay, and its Ray with it, under all tests that follow
            process.kill()
            raise
    twin = LocalPipeline.open(library_store).search(image, SearchParams(k=5))
    assert [hit.image_id for hit in answer.hits] == [hit.image_id for hit in twin.hits]


def _heed_interrupts():
    # A shell's background job ignores them, and so would all that it starts.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _wait(url, process, log):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/readyz", timeout=5).is_success:
                return
        except httpx.HTTPError:
            pass  # it is just coming up
        time.sleep(0.3)
    raise AssertionError(log.read_text())
