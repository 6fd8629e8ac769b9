"""Parse search requests over HTTP: a form with scans, or JSON with an image id or an embedding."""

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
from mrcg_serve.requests import MAX_SCANS, SearchBatchRequest, SearchRequest

Body = TypeVar("Body")
Parsed = TypeVar("Parsed")
FORM, JSON = "multipart/form-data", "application/json"
#: Fields of a form; a form with more is refused.
MAX_FIELDS = 16


class ByName(SearchParams):
    """A search without a scan: by an image of the gallery, or by an embedding from the release's encoder."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={
            "examples": [{"image_id": "5c0b6e1f9a7d4c3e8b2a1f0d9e8c7b6a", "k": 10, "group_by": "patient"}]
        },
    )

    image_id: Annotated[str, StringConstraints(max_length=64)] | None = Field(
        None, description="id of a gallery image; the image is not among its own hits"
    )
    embedding: tuple[float, ...] | None = Field(None, description="embedding of a scan, made by the release's encoder")
    encoder: str | None = Field(None, description="fingerprint of the encoder that made the embedding")

    @model_validator(mode="after")
    def _one_subject(self) -> Self:
        if (self.image_id is None) == (self.embedding is None):
            raise ValueError("give image_id, or embedding with encoder, or send a form with an image")
        if (self.embedding is None) != (self.encoder is None):
            raise ValueError("embedding and encoder go together")
        return self

    def parse_search(self) -> SearchRequest:
        """Return the search as the gateway accepts it."""
        params = SearchParams.model_validate(self.model_dump(include=set(SearchParams.model_fields)))
        if self.image_id is not None:
            return SearchRequest(ImageIdQuery(self.image_id), params)
        assert self.embedding is not None
        assert self.encoder is not None
        return SearchRequest(EmbeddingQuery(embedding=self.embedding, encoder=self.encoder), params)


async def parse_search(request: Request) -> SearchRequest:
    """Return the search of a request: a form with one scan, or JSON.

    Raises:
        RequestValidationError: a field is missing, unknown or wrong.
        HTTPException: 415, the body is neither a form nor JSON.
    """
    content_type = _content_type(request)
    if content_type == JSON:
        return _validated(ByName.model_validate_json, await request.body()).parse_search()
    if content_type != FORM:
        raise HTTPException(415, f"send {FORM} with an image, or {JSON}")
    async with request.form(max_files=1, max_fields=MAX_FIELDS) as form:
        image = form.get("image")
        if not isinstance(image, UploadFile):
            raise _invalid("image", "Field required" if image is None else "Input should be a file")
        fields = {name: value for name, value in form.multi_items() if name != "image"}
        return SearchRequest(await image.read(), _validated(_params, fields))


async def parse_batch(request: Request) -> SearchBatchRequest:
    """Return the searches of a form with several scans.

    Raises:
        RequestValidationError: a field is missing, unknown or wrong.
        HTTPException: 415, the body is not a form.
    """
    if _content_type(request) != FORM:
        raise HTTPException(415, f"send {FORM} with images")
    async with request.form(max_files=MAX_SCANS, max_fields=MAX_FIELDS) as form:
        images = form.getlist("image")
        if not images:
            raise _invalid("image", "Field required")
        scans = [await image.read() if isinstance(image, UploadFile) else None for image in images]
        if any(scan is None for scan in scans):
            raise _invalid("image", "Input should be a file")
        fields = {name: value for name, value in form.multi_items() if name != "image"}
        return SearchBatchRequest(tuple(scan for scan in scans if scan is not None), _validated(_params, fields))


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _params(fields: dict[str, Any]) -> SearchParams:
    if isinstance(text := fields.pop("filters", None), str) and text:
        return SearchParams.model_validate({**fields, "filters": Filters.model_validate_json(text)})
    return SearchParams.model_validate(fields)


def _validated(parse: Callable[[Body], Parsed], body: Body) -> Parsed:
    try:
        return parse(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError([{**p, "loc": ("body", *p["loc"])} for p in problems]) from error


def _invalid(field: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"loc": ("body", field), "msg": message, "type": "value_error"}])


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return schema


def body_of_search() -> dict[str, Any]:
    """Return the search's ``requestBody`` for the OpenAPI document; FastAPI itself supports one type per route."""
    form = _schema(SearchParams)
    form["properties"] = {
        "image": {"type": "string", "format": "binary", "description": "a scan: PNG, JPEG, TIFF, DICOM, NIfTI, …"},
        **form["properties"],
    }
    form["required"] = ["image"]
    return {"required": True, "content": {FORM: {"schema": form}, JSON: {"schema": _schema(ByName)}}}


def body_of_batch() -> dict[str, Any]:
    """Return the ``requestBody`` of the batch search for the OpenAPI document."""
    form = _schema(SearchParams)
    scan = {"type": "string", "format": "binary"}
    form["properties"] = {
        "image": {"type": "array", "items": scan, "minItems": 1, "maxItems": MAX_SCANS, "description": "the scans"},
        **form["properties"],
    }
    form["required"] = ["image"]
    return {"required": True, "content": {FORM: {"schema": form}}}


def schemas_of_search() -> dict[str, Any]:
    """Return the schemas that the request bodies refer to."""
    return {"Filters": json.loads(json.dumps(Filters.model_json_schema()))}
