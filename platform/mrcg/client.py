"""A client of the service, over HTTP."""

from __future__ import annotations

from types import TracebackType

import httpx
from pydantic import ValidationError

from mrcg.errors import ServiceError
from mrcg.search import Answer


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

    def search(self, image: bytes, k: int = 10, rerank: bool = True) -> Answer:
        """The k most similar images of the gallery, best first."""
        files = {"image": ("query", image, "application/octet-stream")}
        response = self._call("POST", "/v1/search", files=files, data={"k": str(k), "rerank": str(rerank).lower()})
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
    ) -> httpx.Response:
        try:
            response = self._http.request(method, path, files=files, data=data)
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
