"""One search in the log and in the trace: one log line, and spans of all stages."""

import json

import httpx
import pytest
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
REQUEST_ID = "ward-7.search-1"


def log_lines(folder):
    logs = [path for path in folder.rglob("serve/*Gateway*") if path.is_file()]
    lines = [json.loads(line) for path in logs for line in path.read_text().splitlines()]
    return [line for line in lines if line.get("search") == REQUEST_ID]


def spans_of(path):
    spans = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [span for span in spans if span["trace"] == TRACE]


@pytest.fixture(scope="module")
def watched(scans, watched_service):
    """Ray's folder, the file of spans, and the answer to one search that was sent with a request id and a trace id."""
    image = sorted(scans.rglob("*.png"))[5].read_bytes()
    headers = {"x-request-id": REQUEST_ID, "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    url, folder = watched_service.url, watched_service.folder
    response = httpx.post(f"{url}/v1/search", files={"image": image}, headers=headers, timeout=60)
    assert response.is_success, response.text
    # The log and the spans are written after the answer; the span of the whole request ends last.
    wait_until(lambda: log_lines(folder) and any("POST" in one["name"] for one in spans_of(watched_service.spans)))
    return folder, watched_service.spans, response.json()


def test_a_search_has_one_log_line_with_its_id_and_nothing_private(watched):
    folder, _, answer = watched
    assert answer["request_id"] == REQUEST_ID
    searches = log_lines(folder)
    assert len(searches) == 1
    assert (searches[0]["message"], searches[0]["release"], searches[0]["reranked"]) == ("answered", 1, True)
    text = "\n".join(path.read_text(errors="replace") for path in folder.rglob("serve/*") if path.is_file())
    assert not any(hit["image_id"] in text or hit["group"] in text for hit in answer["hits"])


def test_the_trace_of_a_caller_continues_through_all_stages(watched):
    _, path, _ = watched
    search_spans = spans_of(path)
    names = " ".join(span["name"] for span in search_spans)
    assert all(part in names for part in ("POST /v1/search", "Embedder embed", "Searcher search", "Reranker rerank")), (
        names
    )
    assert len({span["process"] for span in search_spans}) >= 4
