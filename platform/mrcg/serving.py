"""What a release fixes for every query, whoever takes it in: limits, input size, N, threshold."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass

from mrcg.config import IngestSettings, ServeSettings
from mrcg.encoder.spec import read_spec
from mrcg.errors import UsageError
from mrcg.imaging.decode import Grey, Limits, decode, resize
from mrcg.release import Release
from mrcg.search import Policy, RequestContext, SearchSettings
from mrcg.store import Store


@dataclass(frozen=True)
class QueryRules:
    """Turns uploads into queries. A query is normalised as the release's corpus was."""

    release: int
    limits: Limits
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
            limits=Limits(serve.max_upload_bytes, ingest.max_pixels, ingest.min_side, ingest.max_side),
            input_size=spec.input_size,
            deadline_s=serve.deadline_ms / 1000,
            search=SearchSettings(release.neighbours, release.ood_threshold, serve.rerank_reserve_ms),
        )

    def prepare(self, image: bytes) -> Grey:
        """Content of an image file -> (s, s) grey levels for the encoder.

        Raises:
            ImageError: the image cannot be used; names the limit.
        """
        return resize(decode(image, self.limits), self.input_size)

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
