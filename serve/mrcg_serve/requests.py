"""Checked requests, whatever protocol they came over."""

from __future__ import annotations

from dataclasses import dataclass

from mrcg.api.requests import ByImage, Sent, Wanted

#: Scans of one batch.
MOST_SCANS = 1024


@dataclass(frozen=True)
class Question:
    """Of what, and what is wanted."""

    subject: bytes | ByImage | Sent
    wanted: Wanted


@dataclass(frozen=True)
class Questions:
    """The same of many scans."""

    scans: tuple[bytes, ...]
    wanted: Wanted
