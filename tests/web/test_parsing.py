"""Bodies of a search: what they ask for, and what is wrong with them, without a service."""

import asyncio
from typing import Annotated

import httpx
import pytest
from fastapi import Depends, FastAPI

from mrcg.api.requests import EmbeddingQuery, Filters, ImageIdQuery, SearchParams
from mrcg_serve.http.parsing import parse_search
from mrcg_serve.problem_details import install
from mrcg_serve.requests import SearchRequest

asked = []
app = FastAPI()
install(app)


@app.post("/")
async def take(got: Annotated[SearchRequest, Depends(parse_search)]) -> str:
    asked.append(got)
    return "ok"


class Http:
    """The application without a server."""

    def post(self, path, **request):
        async def ask():
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
                return await client.post(path, **request)

        return asyncio.run(ask())


@pytest.fixture
def http():
    return Http()


def form(http, image=b"scan", **fields):
    return http.post("/", files={"image": ("scan.png", image)} if image is not None else None, data=fields)


def test_a_form_brings_a_scan(http):
    assert form(http).status_code == 200
    assert asked.pop() == SearchRequest(b"scan", SearchParams())
    fields = {"k": "3", "rerank": "false", "group_by": "patient", "exclude_patient": "p", "deadline_ms": "50"}
    assert form(http, filters='{"label": ["a"], "years": [2001, 2003]}', **fields).status_code == 200
    filters = Filters(label=("a",), years=(2001, 2003))
    params = SearchParams(k=3, rerank=False, group_by="patient", filters=filters, exclude_patient="p", deadline_ms=50)
    assert asked.pop() == SearchRequest(b"scan", params)


def test_json_names_an_image_or_brings_an_embedding(http):
    assert http.post("/", json={"image_id": "ab", "k": 4, "filters": {"site": ["north"]}}).status_code == 200
    assert asked.pop() == SearchRequest(ImageIdQuery("ab"), SearchParams(k=4, filters=Filters(site=("north",))))
    assert http.post("/", json={"embedding": [1, 0.5], "encoder": "f"}).status_code == 200
    assert asked.pop() == SearchRequest(EmbeddingQuery(embedding=(1.0, 0.5), encoder="f"), SearchParams())


@pytest.mark.parametrize(
    ("fields", "said"),
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
def test_a_wrong_field_is_named(http, fields, said):
    response = form(http, **fields)
    assert response.status_code == 422
    assert said in response.json()["detail"]
    assert response.json()["code"] == "invalid_request"


@pytest.mark.parametrize(
    ("body", "said"),
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
def test_a_wrong_body_is_told_what_to_send(http, body, said):
    response = http.post("/", json=body)
    assert response.status_code == 422
    assert said in response.json()["detail"]


def test_a_form_without_a_file(http):
    assert form(http, image=None, k="3").json()["code"] in {"invalid_request", "http_error"}
    response = http.post("/", files={"other": ("a", b"x")})
    assert (response.status_code, response.json()["detail"]) == (422, "image: Field required")


@pytest.mark.parametrize("kind", ["text/plain", "", "application/xml"])
def test_another_kind_of_body_is_told_which_are_read(http, kind):
    response = http.post("/", content=b"x", headers={"content-type": kind})
    assert response.status_code == 415
    assert "multipart/form-data with an image" in response.json()["detail"]


def test_a_broken_form_is_no_error_of_ours(http):
    headers = {"content-type": "multipart/form-data"}
    assert http.post("/", content=b"nothing", headers=headers).status_code in {400, 422}
