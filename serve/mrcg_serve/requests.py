"""Checked requests, whatever protocol they came over."""

from __future__ import annotations

from dataclasses import dataclass

from mrcg.api.requests import EmbeddingQuery, ImageIdQuery, SearchParams

#: Scans of one batch.
MOST_SCANS = 1024


@dataclass(frozen=True)
class SearchRequest:
    """Of what, and what is wanted."""

    subject: bytes | ImageIdQuery | EmbeddingQuery
    params: SearchParams


@dataclass(frozen=True)
class SearchBatchRequest:
    """The same of many scans."""

    scans: tuple[bytes, ...]
    params: SearchParams
