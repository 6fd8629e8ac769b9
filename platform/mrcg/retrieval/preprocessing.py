"""Decode and check queries by the rules of a release: limits, input size, encoder, N and thresholds."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass

import numpy as np

from mrcg.api.requests import EmbeddingQuery
from mrcg.config.service import ServeSettings
from mrcg.config.settings import IngestSettings, ReadSettings
from mrcg.encoder.appearance import read_facts
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
    """Decodes uploads to grey levels: raster images in this process, all other formats in a child that may crash.

    Args:
        settings: limits of the readers.
        seconds: timeout for one file in the child process.
        memory_bytes: memory limit of the child process.
    """

    def __init__(self, settings: ReadSettings, seconds: float, memory_bytes: int) -> None:
        self._settings = settings
        self._isolated_reader = IsolatedReader(settings, seconds, memory_bytes)
        self._lock = threading.Lock()

    def __call__(self, image: bytes) -> Grey:
        """Return the (height, width) grey levels of an image file, or of the middle slice of a volume.

        Raises:
            ImageError: the image cannot be used; the message names the limit that it breaks.
        """
        if format_of(image) in (None, "raster"):
            return query_slice(read(image, self._settings))
        with self._lock:  # the child process reads one file at a time
            return query_slice(self._isolated_reader.read(image))


@dataclass(frozen=True)
class QueryRules:
    """Turns requests into queries of one release. A query is normalised in the same way as the release's corpus.

    Attributes:
        release: number of the release.
        decode: decodes uploads.
        input_size: side length of the encoder's input in pixels.
        encoder: fingerprint of the encoder and the appearance part.
        dim: number of dimensions of an embedding.
        deadline_s: default and maximum seconds of a request.
        search: N, order of the hits, thresholds, and the time reserved for the reranker.
    """

    release: int
    decode: Decoder
    input_size: int
    encoder: str
    dim: int
    deadline_s: float
    search: SearchSettings

    @classmethod
    def of(cls, store: Store, release: Release, serve: ServeSettings) -> QueryRules:
        """Return the rules of a release.

        Args:
            store: that has the release.
            release: whose rules are returned.
            serve: upload limit, deadline and reserve for the reranker.
        """
        ingest = IngestSettings.model_validate(store.manifest("corpus", release.corpus).settings["ingest"])
        encoder = store.artefact("encoders", release.encoder)
        facts = read_facts(store.artefact("indexes", release.index), encoder)
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
            input_size=read_spec(encoder)[0].input_size,
            encoder=facts.fingerprint,
            dim=facts.dim,
            deadline_s=serve.deadline_ms / 1000,
            search=SearchSettings(
                release.neighbours,
                release.ood_threshold,
                serve.rerank_reserve_ms,
                facts.trained_dim,
                release.order,
                release.calibration if release.served_map is not None else None,
                release.probability_withheld,
                release.typical_distance,
            ),
        )

    def prepare(self, image: bytes) -> Grey:
        """Content of an image file -> (s, s) grey levels for the encoder.

        Raises:
            ImageError: the image cannot be used; the message names the limit that it breaks.
        """
        return resize(self.decode(image), self.input_size)

    def check_k(self, k: int) -> None:
        """Check that a search may return k hits.

        Raises:
            UsageError: k is out of range.
        """
        if not 1 <= k <= self.search.neighbours:
            raise UsageError(f"k = {k}: ask for 1 to {self.search.neighbours} hits")

    def vector_query(self, query: EmbeddingQuery) -> VectorQuery:
        """Return the query for an embedding that the caller computed.

        Raises:
            FingerprintError: the embedding is from another encoder than the release's.
            UsageError: the embedding has the wrong width or is not finite.
        """
        if query.encoder != self.encoder:
            raise FingerprintError(
                f"the embedding was made by {query.encoder}, but release {self.release} needs the encoder and "
                f"appearance part with fingerprint {self.encoder}: embed the scan with these"
            )
        vector = np.asarray(query.embedding, dtype=np.float32)
        if vector.shape != (self.dim,) or not np.isfinite(vector).all():
            raise UsageError(f"an embedding of encoder {self.encoder} must be {self.dim} finite numbers")
        return VectorQuery(vector)

    def context(
        self, principal: str, policy: Policy, deadline_ms: int | None = None, request_id: str | None = None
    ) -> RequestContext:
        """Return the context of a new request.

        Args:
            principal: name of the caller.
            policy: which images the caller may find.
            deadline_ms: milliseconds for the request, at most ``deadline_s``; None takes ``deadline_s``.
            request_id: id of the request in logs and answers; None makes a new one.
        """
        seconds = self.deadline_s if deadline_ms is None else min(self.deadline_s, deadline_ms / 1000)
        return RequestContext(
            principal=principal,
            allowed=policy.allowed(principal),
            deadline=time.time() + seconds,
            release=self.release,
            trace=request_id or uuid.uuid4().hex,
        )
