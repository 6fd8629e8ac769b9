"""Validated requests, independent of the protocol they came over."""

from __future__ import annotations

from dataclasses import dataclass

from mrcg.api.requests import EmbeddingQuery, ImageIdQuery, SearchParams

#: Scans of one batch, at most.
MAX_SCANS = 1024


@dataclass(frozen=True)
class SearchRequest:
    """One search: its subject and its parameters."""

    subject: bytes | ImageIdQuery | EmbeddingQuery
    params: SearchParams


@dataclass(frozen=True)
class SearchBatchRequest:
    """A search for each of several scans, all with the same parameters."""

    scans: tuple[bytes, ...]
    params: SearchParams
