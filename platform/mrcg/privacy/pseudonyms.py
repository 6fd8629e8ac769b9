"""Pseudonyms: what identifies people becomes a keyed hash before anything is written (DESIGN §5).

The yardstick is the Basic Application Level Confidentiality Profile of DICOM PS3.15 Annex E, with its options
"retain modified dates" and "retain patient characteristics" left out but for a shifted day and a year. Who has the
key can find a known patient's pseudonym again; who has not can neither find nor test one.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Any

from mrcg.errors import UsageError

ENVIRONMENT = "MRCG_PSEUDONYM_KEY"
KEY_DIGITS = 64
#: Raised with every change of what is kept, so that corpora made under two policies never mix.
POLICY_VERSION = 1
#: Header fields that become columns; all else is dropped. Ids become pseudonyms, UIDs are mapped, days shifted.
KEPT = (
    "label", "patient", "study", "series", "instance", "accession", "tenant", "site", "plane", "sequence", "acquired",
    "year", "spacing_mm", "position_mm",
)  # fmt: skip
_SHIFT_DAYS = 182


class Pseudonyms:
    """Keyed, one-way names (HMAC-SHA-256). Equal input gives equal output under one key."""

    def __init__(self, key: bytes) -> None:
        assert len(key) * 2 == KEY_DIGITS
        self._key = key

    def __repr__(self) -> str:
        # The key must not get into logs by way of a dataclass that holds this.
        return f"Pseudonyms({self.fingerprint})"

    @property
    def fingerprint(self) -> str:
        """Names the key without telling it: part of a corpus' version."""
        return self._mac("fingerprint", "")[:16]

    def name(self, kind: str, value: str) -> str:
        """128-bit pseudonym of an id, hex; equal ids of two kinds differ."""
        return self._mac(kind, value)[:32]

    def uid(self, kind: str, value: str) -> str:
        """A DICOM UID in place of another, valid and never the original (PS3.5 §B.2: ``2.25.`` and 128 bits)."""
        return f"2.25.{int(self._mac(kind, value)[:32], 16)}"

    def shifted(self, day: datetime.date, patient: str) -> datetime.date:
        """A day moved by this patient's own offset of up to half a year: intervals stay, days do not."""
        offset = int(self._mac("dates", patient)[:8], 16) % (2 * _SHIFT_DAYS) - _SHIFT_DAYS
        try:
            return day + datetime.timedelta(days=offset if offset else _SHIFT_DAYS)
        except OverflowError:  # year 1 or 9999 of a damaged header
            return day.replace(month=1 if day.month > 6 else 7, day=1)

    def seal(self, data: bytes, nonce: str) -> bytes:
        """Bytes made unreadable without the key, or readable again; never use a nonce for two things.

        A stream of SHAKE-256 over key and nonce: for what lies in a store only while work is under way.
        """
        stream = hashlib.shake_256(self._key + b"seal" + nonce.encode()).digest(len(data))
        return (int.from_bytes(data, "big") ^ int.from_bytes(stream, "big")).to_bytes(len(data), "big")

    def policy(self) -> dict[str, Any]:
        """What the corpus manifest records of all this."""
        return {
            "name": "allow-list",
            "version": POLICY_VERSION,
            "yardstick": "DICOM PS3.15 Annex E, Basic Application Level Confidentiality Profile",
            "kept": list(KEPT),
            "key": self.fingerprint,
        }

    def _mac(self, kind: str, value: str) -> str:
        return hmac.new(self._key, f"{kind}\x1f{value}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def new_key() -> str:
    """A random key, 64 hex digits."""
    return secrets.token_hex(KEY_DIGITS // 2)


def pseudonyms_from_environment() -> Pseudonyms | None:
    """Pseudonyms under the key in ``MRCG_PSEUDONYM_KEY``: 64 hex digits, or the path of a file that holds them.

    Raises:
        UsageError: it is set and neither.
    """
    stated = os.environ.get(ENVIRONMENT, "").strip()
    if not stated:
        return None
    key = _parse(stated)
    if key is None:
        try:
            key = _parse(Path(stated).read_text(encoding="ascii").strip())
        except (OSError, ValueError):
            key = None
    if key is None:
        # Whatever it is, it may be a key with a typo: it is not shown.
        raise UsageError(
            f"{ENVIRONMENT} is neither {KEY_DIGITS} hex digits nor a file that holds them: "
            "`mrcg keys new --kind pseudonym --out FILE` makes one"
        )
    return Pseudonyms(key)


def key_needed(what: str) -> UsageError:
    """The error that refuses identified scans without a key."""
    return UsageError(
        f"{what} name patients and need a pseudonym key: `mrcg keys new --kind pseudonym --out FILE` makes one, "
        f"then set {ENVIRONMENT}=FILE; keep it, without it no patient can be found again"
    )


def _parse(text: str) -> bytes | None:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        return None
    return key if len(text) == KEY_DIGITS and len(key) * 2 == KEY_DIGITS else None
