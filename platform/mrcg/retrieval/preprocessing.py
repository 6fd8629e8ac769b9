"""What a release fixes for every query, whoever takes it in: limits, input size, N, threshold."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass

import numpy as np

from mrcg.api.requests import EmbeddingQuery
from mrcg.config.settings import IngestSettings, ReadSettings, ServeSettings
from mrcg.encoder.spec import read_spec
from mrcg.errors import FingerprintError, UsageError
from mrcg.imaging.isolated_reader import IsolatedReader
from mrcg.imaging.readers import format_of, query_slice, read
from mrcg.imaging.slices import Grey, resize
from mrcg.releases.release import Release
from mrcg.retrieval.query import VectorQuery
from mrcg.retrieval.search import Policy, RequestContext, SearchSettings
from mrcg.storage.store import Store


class Decoder:
    """Uploads to grey levels: everyday formats in this process, all others in one that may crash."""

    def __init__(self, settings: ReadSettings, seconds: float, memory_bytes: int) -> None:
        self._settings = settings
        self._guard = IsolatedReader(settings, seconds, memory_bytes)
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
    encoder: str
    dim: int
    deadline_s: float
    search: SearchSettings

    @classmethod
    def of(cls, store: Store, release: Release, serve: ServeSettings) -> QueryRules:
        """The rules of a release."""
        ingest = IngestSettings.model_validate(store.manifest("corpus", release.corpus).settings["ingest"])
        spec, fingerprint = read_spec(store.artefact("encoders", release.encoder))
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
            encoder=fingerprint,
            dim=spec.embedding_dim,
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

    def vector_query(self, sent: EmbeddingQuery) -> VectorQuery:
        """An embedding that the caller made.

        Raises:
            FingerprintError: by another encoder than the release's.
            UsageError: it has another width, or is not finite.
        """
        if sent.encoder != self.encoder:
            raise FingerprintError(
                f"the embedding is of encoder {sent.encoder}, release {self.release} has {self.encoder}: embed with it"
            )
        vector = np.asarray(sent.embedding, dtype=np.float32)
        if vector.shape != (self.dim,) or not np.isfinite(vector).all():
            raise UsageError(f"an embedding of {self.encoder} is {self.dim} finite numbers")
        return VectorQuery(vector)

    def context(
        self, principal: str, policy: Policy, deadline_ms: int | None = None, named: str | None = None
    ) -> RequestContext:
        """A new request's context; a caller may ask for an earlier deadline than the service's own, and name it."""
        seconds = self.deadline_s if deadline_ms is None else min(self.deadline_s, deadline_ms / 1000)
        return RequestContext(
            principal=principal,
            allowed=policy.allowed(principal),
            deadline=time.time() + seconds,
            release=self.release,
            trace=named or uuid.uuid4().hex,
        )
