"""Parsing of search bodies, valid and invalid, without a running service."""

import asyncio
from typing import Annotated

import httpx
import pytest
from fastapi import Depends, FastAPI

from mrcg.api.requests import EmbeddingQuery, Filters, ImageIdQuery, SearchParams
from mrcg_serve.http.parsing import parse_search
from mrcg_serve.problem_details import install
from mrcg_serve.requests import SearchRequest

parsed = []
app = FastAPI()
install(app)


@app.post("/")
async def take(search_request: Annotated[SearchRequest, Depends(parse_search)]) -> str:
    parsed.append(search_request)
    return "ok"


class Http:
    """Calls the application without a server."""

    def post(self, path, **request):
        async def send():
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
                return await client.post(path, **request)

        return asyncio.run(send())


@pytest.fixture
def http():
    return Http()


def form(http, image=b"scan", **fields):
    return http.post("/", files={"image": ("scan.png", image)} if image is not None else None, data=fields)


def test_a_form_with_a_scan(http):
    assert form(http).status_code == 200
    assert parsed.pop() == SearchRequest(b"scan", SearchParams())
    fields = {"k": "3", "rerank": "false", "group_by": "patient", "exclude_patient": "p", "deadline_ms": "50"}
    assert form(http, filters='{"label": ["a"], "years": [2001, 2003]}', **fields).status_code == 200
    filters = Filters(label=("a",), years=(2001, 2003))
    params = SearchParams(k=3, rerank=False, group_by="patient", filters=filters, exclude_patient="p", deadline_ms=50)
    assert parsed.pop() == SearchRequest(b"scan", params)


def test_json_with_an_image_id_or_an_embedding(http):
    assert http.post("/", json={"image_id": "ab", "k": 4, "filters": {"site": ["north"]}}).status_code == 200
    assert parsed.pop() == SearchRequest(ImageIdQuery("ab"), SearchParams(k=4, filters=Filters(site=("north",))))
    assert http.post("/", json={"embedding": [1, 0.5], "encoder": "f"}).status_code == 200
    assert parsed.pop() == SearchRequest(EmbeddingQuery(embedding=(1.0, 0.5), encoder="f"), SearchParams())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": "many"}, "k: Input should be a valid integer"),
        ({"rerank": "perhaps"}, "rerank: Input should be a valid boolean"),
        ({"group_by": "site"}, "group_by: Input should be 'none', 'patient' or 'study'"),
        ({"deadline_ms": "0"}, "deadline_ms: Input should be greater than 0"),
        ({"filters": "{"}, "Invalid JSON"),
        ({"filters": '{"colour": ["red"]}'}, "colour: Extra inputs are not permitted"),
        ({"filters": '{"years": [2001]}'}, "years.1: Field required"),
        ({"depth": "3"}, "depth: Extra inputs are not permitted"),
    ],
)
def test_an_invalid_field_is_named(http, fields, message):
    response = form(http, **fields)
    assert response.status_code == 422
    assert message in response.json()["detail"]
    assert response.json()["code"] == "invalid_request"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "give image_id, or embedding with encoder"),
        ({"image_id": "a", "embedding": [1], "encoder": "f"}, "give image_id, or embedding with encoder"),
        ({"embedding": [1]}, "embedding and encoder go together"),
        ({"image_id": "a", "encoder": "f"}, "embedding and encoder go together"),
        ({"embedding": ["x"], "encoder": "f"}, "embedding.0: Input should be a valid number"),
        ({"image_id": "a" * 65}, "image_id: String should have at most 64 characters"),
        ([], "Input should be an object"),
    ],
)
def test_an_invalid_body_gets_a_helpful_message(http, body, message):
    response = http.post("/", json=body)
    assert response.status_code == 422
    assert message in response.json()["detail"]


def test_a_form_without_a_file_is_refused(http):
    assert form(http, image=None, k="3").json()["code"] in {"invalid_request", "http_error"}
    response = http.post("/", files={"other": ("a", b"x")})
    assert (response.status_code, response.json()["detail"]) == (422, "image: Field required")


@pytest.mark.parametrize("content_type", ["text/plain", "", "application/xml"])
def test_an_unsupported_content_type_names_the_supported_ones(http, content_type):
    response = http.post("/", content=b"x", headers={"content-type": content_type})
    assert response.status_code == 415
    assert "multipart/form-data with an image" in response.json()["detail"]


def test_a_broken_form_is_a_client_error(http):
    headers = {"content-type": "multipart/form-data"}
    assert http.post("/", content=b"nothing", headers=headers).status_code in {400, 422}
