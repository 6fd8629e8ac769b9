"""Searches as they come over HTTP: a form with scans, or JSON that names an image or brings an embedding."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, Self, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from mrcg.api.requests import EmbeddingQuery, Filters, ImageIdQuery, SearchParams
from mrcg_serve.requests import MOST_SCANS, SearchBatchRequest, SearchRequest

Body = TypeVar("Body")
Parsed = TypeVar("Parsed")
FORM, JSON = "multipart/form-data", "application/json"
#: Fields and files of a form: more are not read.
MOST_FIELDS = 16


class ByName(SearchParams):
    """A search without a scan: by an image of the gallery, or by an embedding of the release's encoder."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={
            "examples": [{"image_id": "5c0b6e1f9a7d4c3e8b2a1f0d9e8c7b6a", "k": 10, "group_by": "patient"}]
        },
    )

    image_id: Annotated[str, StringConstraints(max_length=64)] | None = Field(
        None, description="of the gallery; it is not among its own hits"
    )
    embedding: tuple[float, ...] | None = Field(None, description="of a scan, by the release's encoder")
    encoder: str | None = Field(None, description="fingerprint of the encoder that made the embedding")

    @model_validator(mode="after")
    def _one_subject(self) -> Self:
        if (self.image_id is None) == (self.embedding is None):
            raise ValueError("give image_id, or embedding with encoder, or send a form with an image")
        if (self.embedding is None) != (self.encoder is None):
            raise ValueError("embedding and encoder go together")
        return self

    def parse_search(self) -> SearchRequest:
        """The same as the gateway takes it."""
        params = SearchParams.model_validate(self.model_dump(include=set(SearchParams.model_fields)))
        if self.image_id is not None:
            return SearchRequest(ImageIdQuery(self.image_id), params)
        assert self.embedding is not None
        assert self.encoder is not None
        return SearchRequest(EmbeddingQuery(embedding=self.embedding, encoder=self.encoder), params)


async def parse_search(request: Request) -> SearchRequest:
    """The search of a request.

    Raises:
        RequestValidationError: a field is missing, unknown or wrong.
        HTTPException: 415, neither a form nor JSON.
    """
    kind = _kind(request)
    if kind == JSON:
        return _checked(ByName.model_validate_json, await request.body()).parse_search()
    if kind != FORM:
        raise HTTPException(415, f"send {FORM} with an image, or {JSON}")
    async with request.form(max_files=1, max_fields=MOST_FIELDS) as form:
        image = form.get("image")
        if not isinstance(image, UploadFile):
            raise _invalid("image", "Field required" if image is None else "has to be a file")
        fields = {name: value for name, value in form.multi_items() if name != "image"}
        return SearchRequest(await image.read(), _checked(_params, fields))


async def parse_batch(request: Request) -> SearchBatchRequest:
    """The searches of a request that brings many scans.

    Raises:
        RequestValidationError: a field is missing, unknown or wrong.
        HTTPException: 415, not a form.
    """
    if _kind(request) != FORM:
        raise HTTPException(415, f"send {FORM} with images")
    async with request.form(max_files=MOST_SCANS, max_fields=MOST_FIELDS) as form:
        images = form.getlist("image")
        if not images:
            raise _invalid("image", "Field required")
        scans = [await one.read() if isinstance(one, UploadFile) else None for one in images]
        if any(one is None for one in scans):
            raise _invalid("image", "has to be a file")
        fields = {name: value for name, value in form.multi_items() if name != "image"}
        return SearchBatchRequest(tuple(one for one in scans if one is not None), _checked(_params, fields))


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _params(fields: dict[str, Any]) -> SearchParams:
    if isinstance(text := fields.pop("filters", None), str) and text:
        return SearchParams.model_validate({**fields, "filters": Filters.model_validate_json(text)})
    return SearchParams.model_validate(fields)


def _checked(parse: Callable[[Body], Parsed], body: Body) -> Parsed:
    try:
        return parse(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in found]) from error


def _invalid(field: str, said: str) -> RequestValidationError:
    return RequestValidationError([{"loc": ("body", field), "msg": said, "type": "value_error"}])


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return schema


def body_of_search() -> dict[str, Any]:
    """``requestBody`` of the search, for the OpenAPI document: FastAPI knows one kind of body for a route."""
    form = _schema(SearchParams)
    form["properties"] = {
        "image": {"type": "string", "format": "binary", "description": "a scan: PNG, JPEG, TIFF, DICOM, NIfTI, …"},
        **form["properties"],
    }
    form["required"] = ["image"]
    return {"required": True, "content": {FORM: {"schema": form}, JSON: {"schema": _schema(ByName)}}}


def body_of_batch() -> dict[str, Any]:
    """The same for the search by many scans."""
    form = _schema(SearchParams)
    scan = {"type": "string", "format": "binary"}
    form["properties"] = {
        "image": {"type": "array", "items": scan, "minItems": 1, "maxItems": MOST_SCANS, "description": "scans"},
        **form["properties"],
    }
    form["required"] = ["image"]
    return {"required": True, "content": {FORM: {"schema": form}}}


def schemas_of_search() -> dict[str, Any]:
    """What the body of the search refers to."""
    return {"Filters": json.loads(json.dumps(Filters.model_json_schema()))}
