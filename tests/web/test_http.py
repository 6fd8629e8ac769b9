"""Responses of the service over HTTP, to valid and invalid requests."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.factories import bomb, mrcg
from tests.waiting import wait_until

from mrcg.api.responses import Hit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def http(service):
    with httpx.Client(base_url=service, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def scan(ray_run):
    return sorted(ray_run.source.rglob("patient-*.png"))[0].read_bytes()


def search(http, image, **form):
    return http.post("/v1/search", files={"image": ("scan.png", image, "image/png")}, data=form)


def test_a_search_returns_ten_hits_with_release_and_times(http, scan):
    response = search(http, scan)
    assert response.status_code == 200
    body = response.json()
    assert len(body["hits"]) == 10
    assert set(body["hits"][0]) == set(Hit.model_fields)
    assert sum(body["classes"].values()) == 10
    assert body["passing"] == body["allowed"] > 10
    assert (body["shards_answered"], body["explanation"]) == (body["shards"], None)
    assert body["release"] == 1
    assert set(body["milliseconds"]) == {"decode", "embed", "search", "rerank", "total"}
    assert body["reranked"]
    assert not body["partial"]


@pytest.mark.parametrize(
    ("image", "form", "status", "code", "detail"),
    [
        (None, {"k": 0}, 422, "invalid_request", "k = 0: ask for 1 to 20 hits"),
        (None, {"k": 10_000}, 422, "invalid_request", "k = 10000: ask for 1 to 20 hits"),
        (None, {"k": "many"}, 422, "invalid_request", "k: Input should be a valid integer"),
        (b"not an image", {}, 422, "image_not_an_image", "PNG, JPEG, TIFF, WEBP, BMP"),
        (b"", {}, 422, "image_empty", "the file is empty"),
        (bomb(20_000), {}, 413, "image_too_many_pixels", "the limit is 64,000,000 pixels"),
        (bytes(60 * 2**20), {}, 413, "too_many_bytes", "the limit of 52,428,800 bytes"),
    ],
    ids=["k0", "k10000", "k-text", "text", "empty", "bomb", "60MB"],
)
def test_bad_requests_name_the_limit(http, scan, image, form, status, code, detail):
    response = search(http, scan if image is None else image, **form)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert (body["code"], body["status"]) == (code, status)
    assert detail in body["detail"]


def test_an_image_of_the_gallery_finds_others(http, scan):
    first = search(http, scan, k=5, rerank=False).json()["hits"][0]["image_id"]
    response = http.post("/v1/search", json={"image_id": first, "k": 20, "rerank": False})
    assert response.status_code == 200
    assert first not in {hit["image_id"] for hit in response.json()["hits"]}
    missing = http.post("/v1/search", json={"image_id": "nobody"})
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    assert "no image nobody: use the image_id" in missing.json()["detail"]


def test_filters_and_groups_limit_the_hits(http, scan):
    unfiltered = search(http, scan, k=20).json()
    label = unfiltered["hits"][0]["label"]
    filtered = search(http, scan, k=20, filters=json.dumps({"label": [label]})).json()
    assert {hit["label"] for hit in filtered["hits"]} == {label}
    assert filtered["passing"] < filtered["allowed"] == unfiltered["allowed"]
    assert filtered["found"] == min(20, filtered["passing"])
    grouped = search(http, scan, k=20, group_by="patient").json()
    assert len({hit["group"] for hit in grouped["hits"]}) == grouped["found"]


def test_an_embedding_of_another_encoder_is_refused(http):
    response = http.post("/v1/search", json={"embedding": [0.0, 1.0], "encoder": "another"})
    assert (response.status_code, response.json()["code"]) == (409, "other_encoder")


def test_an_explanation_contains_the_query_graph(http, scan):
    body = search(http, scan, k=3, explain=True).json()
    explanation = body["explanation"]
    assert [hit["image_id"] for hit in explanation["hits"]] == [hit["image_id"] for hit in body["hits"]]
    assert len(explanation["weights"]) == len(explanation["nodes"]) == 20
    moved = [neighbour["moved"] for hit in explanation["hits"] for neighbour in hit["neighbours"]]
    assert all(moved), "a neighbour that changes no rank is not named"
    assert explanation["graph_changed_order"] or not moved
    assert [hit["rank_change"] for hit in explanation["hits"]] == [
        hit["ann_rank"] - hit["rank"] for hit in body["hits"]
    ]
    assert "explain" in body["milliseconds"]


def test_a_form_without_an_image_is_refused(http):
    response = http.post("/v1/search", files={"k": (None, "3")})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert response.json()["detail"] == "image: Field required"


def test_a_body_without_a_length_is_limited_too(http):
    def chunks():
        for _ in range(60):
            yield bytes(2**20)

    response = http.post("/v1/search", content=chunks(), headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert (response.status_code, response.json()["code"]) == (413, "too_many_bytes")


def test_concurrent_searches_are_all_answered(http, scan):
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: search(http, scan, k=5).json(), range(48)))
    assert all(answer["reranked"] for answer in answers)
    first = [hit["image_id"] for hit in answers[0]["hits"]]
    assert all(sorted(hit["image_id"] for hit in answer["hits"]) == sorted(first) for answer in answers)


def test_previews(http, scan):
    hit = search(http, scan).json()["hits"][0]["image_id"]
    response = http.get(f"/v1/images/{hit}/preview")
    assert (response.status_code, response.headers["content-type"]) == (200, "image/webp")
    missing = http.get("/v1/images/nobody/preview")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")


def test_health_readiness_and_metrics(http, scan):
    search(http, scan)
    search(http, b"no image")
    assert http.get("/healthz").json() == {"status": "ok", "release": 1}
    assert http.get("/readyz").json() == {"status": "ready", "release": 1}


def test_metrics_include_all_replicas(http, scan):
    search(http, scan)
    search(http, b"no image")
    expected = [
        ("ray_mrcg_requests_total", {"outcome": "reranked", "deployment": "Gateway"}),
        ("ray_mrcg_requests_total", {"outcome": "image_not_an_image"}),
        ("ray_mrcg_stage_seconds_bucket", {"stage": "embed", "le": "0.1"}),
        ("ray_mrcg_batch_size_count", {"deployment": "Embedder"}),
        ("ray_mrcg_batch_size_count", {"deployment": "Reranker"}),
        ("ray_mrcg_release", {}),
    ]

    def missing():
        families = text_string_to_metric_families(http.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        return [
            (name, tags)
            for name, tags in expected
            if not any(sample.name == name and tags.items() <= sample.labels.items() for sample in samples)
        ]

    wait_until(lambda: not missing(), interval=1.0, said=missing)  # Ray exports metrics every few seconds
    assert missing() == []


def test_openapi_describes_the_search(http):
    document = http.get("/openapi.json").json()
    assert {"/v1/search", "/healthz", "/readyz", "/metrics"} <= set(document["paths"])
    assert {"200", "413", "422", "503"} <= set(document["paths"]["/v1/search"]["post"]["responses"])
    search = document["paths"]["/v1/search"]["post"]
    assert set(search["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    assert "Filters" in document["components"]["schemas"]
    assert {"404", "409", "415"} <= set(search["responses"])
    assert http.get("/docs").status_code == 200
    assert http.get("/nowhere").status_code == 404


def test_a_second_service_on_the_port_is_refused(service, ray_run):
    port = service.rsplit(":", 1)[1]
    done = mrcg("serve", "--store", ray_run.store.url, "--port", port)
    assert done.returncode == 2
    assert f"--port {port} on 127.0.0.1 cannot be used" in done.stderr
