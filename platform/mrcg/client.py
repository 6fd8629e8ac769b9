"""A client of the service, over HTTP."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any

import httpx
from pydantic import ValidationError

from mrcg.answers import Answer
from mrcg.errors import ServiceError
from mrcg.query import ByImage, Sent, Wanted


class Client:
    """Asks a running service.

    Args:
        url: where it listens, e.g. ``http://127.0.0.1:8000``.
        timeout: seconds for one call.

    Raises (every method):
        ServiceError: the service cannot be reached or refuses the call; the message says why.
    """

    def __init__(self, url: str, timeout: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(base_url=self.url, timeout=timeout)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()

    def search(self, subject: bytes | ByImage | Sent, wanted: Wanted = Wanted()) -> Answer:
        """The k most similar images of the gallery, best first.

        Args:
            subject: content of an image file, an image of the gallery, or an embedding of the release's encoder.
            wanted: what is asked of it.
        """
        fields = wanted.model_dump(mode="json", exclude_defaults=True)
        match subject:
            case ByImage(image_id):
                response = self._call("POST", "/v1/search", body={"image_id": image_id, **fields})
            case Sent():
                response = self._call("POST", "/v1/search", body={**subject.model_dump(mode="json"), **fields})
            case _:
                form = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
                files = {"image": ("query", subject, "application/octet-stream")}
                response = self._call("POST", "/v1/search", files=files, data=form)
        try:
            return Answer.model_validate_json(response.content)
        except ValidationError as error:
            raise ServiceError(
                f"{self.url} gave an answer that this client cannot read: use the versions that fit"
            ) from error

    def preview(self, image_id: str) -> bytes:
        """A small PNG of an image of the gallery."""
        return self._call("GET", f"/v1/images/{image_id}/preview").content

    def _call(
        self,
        method: str,
        path: str,
        files: dict[str, tuple[str, bytes, str]] | None = None,
        data: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
    ) -> httpx.Response:
        try:
            response = self._http.request(method, path, files=files, data=data, json=body)
        except httpx.HTTPError as error:
            raise ServiceError(
                f"{self.url} cannot be reached ({type(error).__name__}): is `mrcg serve` running there?"
            ) from error
        if response.is_error:
            raise ServiceError(f"{self.url}{path} answered {response.status_code}: {_detail(response)}")
        return response


def _detail(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return response.text[:200]
    return str(body.get("detail", body)) if isinstance(body, dict) else str(body)
