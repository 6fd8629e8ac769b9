"""One search in the log and in the trace: one log line, and spans of all stages."""

import json
import shutil
import tempfile
import time
from pathlib import Path

import httpx
import pytest
from tests.factories import make_release
from tests.serving import serving

from mrcg.storage.store import Store

pytestmark = pytest.mark.slow

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
REQUEST_ID = "ward-7.search-1"


@pytest.fixture(scope="module")
def watched(scans, tmp_path_factory):
    """Ray's folder, the file of spans, and the answer to one search that was sent with a request id and a trace id."""
    store = Store(str(tmp_path_factory.mktemp("watched") / "store"))
    make_release(store, scans)
    folder = tempfile.mkdtemp(prefix="mrcg-", dir="/tmp")  # the paths of Unix sockets must be short
    spans = tmp_path_factory.mktemp("spans") / "spans.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("MRCG_TEST_SPANS", str(spans))
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        with serving(store.url, "--spans", "spans_to_file:processors") as url:
            image = sorted(scans.rglob("*.png"))[5].read_bytes()
            headers = {"x-request-id": REQUEST_ID, "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
            response = httpx.post(f"{url}/v1/search", files={"image": image}, headers=headers, timeout=60)
            assert response.is_success, response.text
            time.sleep(1)
    yield Path(folder), spans, response.json()
    shutil.rmtree(folder, ignore_errors=True)  # Ray processes that are still ending may write their logs


def test_a_search_has_one_log_line_with_its_id_and_nothing_private(watched):
    folder, _, answer = watched
    assert answer["request_id"] == REQUEST_ID
    logs = [path for path in folder.rglob("serve/*Gateway*") if path.is_file()]
    lines = [json.loads(line) for path in logs for line in path.read_text().splitlines()]
    searches = [line for line in lines if line.get("search") == REQUEST_ID]
    assert len(searches) == 1
    assert (searches[0]["message"], searches[0]["release"], searches[0]["reranked"]) == ("answered", 1, True)
    text = "\n".join(path.read_text(errors="replace") for path in folder.rglob("serve/*") if path.is_file())
    assert not any(hit["image_id"] in text or hit["group"] in text for hit in answer["hits"])


def test_the_trace_of_a_caller_continues_through_all_stages(watched):
    _, path, _ = watched
    spans = [json.loads(line) for line in path.read_text().splitlines()]
    search_spans = [span for span in spans if span["trace"] == TRACE]
    names = " ".join(span["name"] for span in search_spans)
    assert all(part in names for part in ("POST /v1/search", "Embedder embed", "Searcher search", "Reranker rerank")), (
        names
    )
    assert len({span["process"] for span in search_spans}) >= 4
