"""What a release fixes for every query, whoever takes it in: limits, input size, N, threshold."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass

from mrcg.config import IngestSettings, ReadSettings, ServeSettings
from mrcg.encoder.spec import read_spec
from mrcg.errors import UsageError
from mrcg.imaging.guard import Guard
from mrcg.imaging.readers import format_of, query_slice, read
from mrcg.imaging.slices import Grey, resize
from mrcg.release import Release
from mrcg.search import Policy, RequestContext, SearchSettings
from mrcg.store import Store


class Decoder:
    """Uploads to grey levels: everyday formats in this process, all others in one that may crash."""

    def __init__(self, settings: ReadSettings, seconds: float, memory_bytes: int) -> None:
        self._settings = settings
        self._guard = Guard(settings, seconds, memory_bytes)
        self._lock = threading.Lock()

    def __call__(self, image: bytes) -> Grey:
        """(height, width) grey levels of an image file, or of the middle slice of a volume.

        Raises:
            ImageError: the image cannot be used; names the limit.
        """
        if format_of(image) in (None, "raster"):
            return query_slice(read(image, self._settings))
        with self._lock:  # the guard's process reads one file at a time
            return query_slice(self._guard.read(image))


@dataclass(frozen=True)
class QueryRules:
    """Turns uploads into queries. A query is normalised as the release's corpus was."""

    release: int
    decode: Decoder
    input_size: int
    deadline_s: float
    search: SearchSettings

    @classmethod
    def of(cls, store: Store, release: Release, serve: ServeSettings) -> QueryRules:
        """The rules of a release."""
        ingest = IngestSettings.model_validate(store.manifest("corpus", release.corpus).settings["ingest"])
        spec, _ = read_spec(store.artefact("encoders", release.encoder))
        return cls(
            release=release.number,
            decode=Decoder(
                ReadSettings.model_validate(
                    ingest.model_dump(include=set(ReadSettings.model_fields))
                    | {"max_file_bytes": serve.max_upload_bytes}
                ),
                serve.deadline_ms / 1000,
                ingest.reader_bytes,
            ),
            input_size=spec.input_size,
            deadline_s=serve.deadline_ms / 1000,
            search=SearchSettings(release.neighbours, release.ood_threshold, serve.rerank_reserve_ms),
        )

    def prepare(self, image: bytes) -> Grey:
        """Content of an image file -> (s, s) grey levels for the encoder.

        Raises:
            ImageError: the image cannot be used; names the limit.
        """
        return resize(self.decode(image), self.input_size)

    def check_k(self, k: int) -> None:
        """Whether k hits can be asked for.

        Raises:
            UsageError: names the limits.
        """
        if not 1 <= k <= self.search.neighbours:
            raise UsageError(f"k = {k}: ask for 1 to {self.search.neighbours} hits")

    def context(self, principal: str, policy: Policy) -> RequestContext:
        """A new request's context."""
        return RequestContext(
            principal=principal,
            allowed=policy.allowed(principal),
            deadline=time.time() + self.deadline_s,
            release=self.release,
            trace=uuid.uuid4().hex,
        )
