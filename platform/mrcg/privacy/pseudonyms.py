"""Pseudonyms: identifiers of people become keyed hashes before anything is written.

The policy (`docs/corpus.md#de-identification`) follows the Basic Application Level Confidentiality Profile of DICOM
PS3.15 Annex E. Its options "retain modified dates" and "retain patient characteristics" are not used, except for a
shifted day and a year. Whoever has the key can recompute the pseudonym of a known patient; without the key nobody can
compute or test one.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Any

from mrcg.errors import IntegrityError, UsageError, require

ENVIRONMENT = "MRCG_PSEUDONYM_KEY"
KEY_DIGITS = 64
#: Increase it with every change to what is kept, so that corpora made under different policies never mix.
#:
#: 1: a patient is an id. 2: a patient is an id and the authority that assigned it.
POLICY_VERSION = 2
#: Header fields that become columns; all others are dropped. Ids become pseudonyms, UIDs are mapped, days are shifted.
KEPT_FIELDS = (
    "label", "patient", "issuer", "study", "series", "instance", "accession", "tenant", "site", "plane", "sequence",
    "acquired", "year", "spacing_mm", "position_mm",
)  # fmt: skip
_SHIFT_DAYS = 182
_NONCE_BYTES = 12


class Pseudonyms:
    """Keyed one-way pseudonyms (HMAC-SHA-256). Equal input gives equal output under one key."""

    def __init__(self, key: bytes) -> None:
        assert len(key) * 2 == KEY_DIGITS
        self._key = key

    def __repr__(self) -> str:
        # The key must not reach a log through the repr of a dataclass that holds this object.
        return f"Pseudonyms({self.fingerprint})"

    @property
    def fingerprint(self) -> str:
        """64 bits in hex that identify the key without revealing it; part of the version of a corpus."""
        return self._mac("fingerprint", "")[:16]

    def name(self, kind: str, value: str) -> str:
        """Return the 128-bit pseudonym of an id in hex; the same id gives different pseudonyms for different kinds."""
        return self._mac(kind, value)[:32]

    def person(self, authority: str, bare_id: str) -> str:
        """Return the 128-bit pseudonym of a patient in hex, from the pseudonym of the id and who assigned the id.

        Args:
            authority: ``mrcg.privacy.identity.authority_of``.
            bare_id: ``name("patient", …)`` of the id, the whole pseudonym of a patient under policy 1. So a
                corpus can be brought to this policy without its source.
        """
        return self._mac("person", f"{authority}\x1f{bare_id}")[:32]

    def hidden(self, text: str) -> str:
        """Encrypt a short text, such as the name of a hospital, for a column (AES-SIV, hex): equal texts look equal.

        Raises:
            MissingExtraError: cryptography is not installed.
        """
        encrypted: bytes = _siv(self._key).encrypt(text.encode("utf-8", "surrogatepass"), None)
        return encrypted.hex()

    def revealed(self, hidden: str) -> str:
        """Return the text that ``hidden`` encrypted.

        Raises:
            IntegrityError: it was changed, or another key encrypted it.
            MissingExtraError: cryptography is not installed.
        """
        invalid = require("cryptography.exceptions").InvalidTag
        try:
            text: bytes = _siv(self._key).decrypt(bytes.fromhex(hidden), None)
        except (invalid, ValueError) as error:
            raise IntegrityError(
                "the issuer of a patient id was changed, or encrypted with another key: `mrcg verify` finds damage"
            ) from error
        return text.decode("utf-8", "surrogatepass")

    def uid(self, kind: str, value: str) -> str:
        """Return a valid replacement for a DICOM UID, never the original (PS3.5 §B.2: ``2.25.`` and 128 bits)."""
        return f"2.25.{int(self._mac(kind, value)[:32], 16)}"

    def shifted(self, day: datetime.date, patient: str) -> datetime.date:
        """Shift a day by 1 to 182 days either way; the offset is fixed per patient, so intervals stay the same."""
        offset = int(self._mac("dates", patient)[:8], 16) % (2 * _SHIFT_DAYS) - _SHIFT_DAYS
        try:
            return day + datetime.timedelta(days=offset if offset else _SHIFT_DAYS)
        except OverflowError:  # a damaged header with year 1 or 9999
            return day.replace(month=1 if day.month > 6 else 7, day=1)

    def seal(self, data: bytes, name: str) -> bytes:
        """Encrypt bytes with AES-256-GCM and a key derived from this one; the name is authenticated, too.

        Raises:
            MissingExtraError: cryptography is not installed.
        """
        nonce = os.urandom(_NONCE_BYTES)
        encrypted: bytes = self._cipher().encrypt(nonce, data, name.encode())
        return nonce + encrypted

    def unseal(self, sealed: bytes, name: str) -> bytes:
        """Decrypt what ``seal`` returned for the same name.

        Raises:
            IntegrityError: the bytes or the name were changed, or another key encrypted them.
            MissingExtraError: cryptography is not installed.
        """
        invalid = require("cryptography.exceptions").InvalidTag
        try:
            data: bytes = self._cipher().decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], name.encode())
        except (invalid, ValueError) as error:  # ValueError: shorter than a nonce
            raise IntegrityError(
                f"{name} was changed after it was encrypted, or with another key than {ENVIRONMENT} holds: "
                "set the key that the job was started with; if it is set, remove the attempt (`mrcg gc`) and run again"
            ) from error
        return data

    def _cipher(self) -> Any:
        return require("cryptography.hazmat.primitives.ciphers.aead").AESGCM(_derived(self._key, b"mrcg seal"))

    def policy(self) -> dict[str, Any]:
        """Return the de-identification policy as the corpus manifest records it."""
        return {
            "name": "allow-list",
            "version": POLICY_VERSION,
            "yardstick": "DICOM PS3.15 Annex E, Basic Application Level Confidentiality Profile",
            "kept": list(KEPT_FIELDS),
            "key": self.fingerprint,
        }

    def _mac(self, kind: str, value: str) -> str:
        return hmac.new(self._key, f"{kind}\x1f{value}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def _derived(key: bytes, purpose: bytes) -> bytes:
    """Return 32 bytes for one purpose (HKDF-SHA-256)."""
    hkdf, hashes = (
        require("cryptography.hazmat.primitives.kdf.hkdf"),
        require("cryptography.hazmat.primitives.hashes"),
    )
    derived: bytes = hkdf.HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=purpose).derive(key)
    return derived


@functools.lru_cache(maxsize=4)
def _siv(key: bytes) -> Any:
    return require("cryptography.hazmat.primitives.ciphers.aead").AESSIV(_derived(key, b"mrcg hidden text"))


def new_key() -> str:
    """Return a random key of 64 hex digits."""
    return secrets.token_hex(KEY_DIGITS // 2)


def pseudonyms_from_environment() -> Pseudonyms | None:
    """Return pseudonyms with the key in ``MRCG_PSEUDONYM_KEY``; None if the variable is unset or empty.

    The variable holds 64 hex digits, or the path of a file that holds them.

    Raises:
        UsageError: the variable holds neither.
    """
    setting = os.environ.get(ENVIRONMENT, "").strip()
    if not setting:
        return None
    key = _parse(setting)
    if key is None:
        try:
            key = _parse(Path(setting).read_text(encoding="ascii").strip())
        except (OSError, ValueError):
            key = None
    if key is None:
        # The message does not quote the value: it may be a real key with a typo.
        raise UsageError(
            f"{ENVIRONMENT} is neither {KEY_DIGITS} hex digits nor the path of a file that holds them: "
            "create a key with `mrcg keys new --kind pseudonym --out FILE`"
        )
    return Pseudonyms(key)


def missing_key_error(sources: str) -> UsageError:
    """Return the error that refuses scans with patient identifiers when no key is set.

    Args:
        sources: the files that need the key, as a plural subject, e.g. "DICOM files".
    """
    return UsageError(
        f"{sources} identify patients and need a pseudonym key: create one with "
        f"`mrcg keys new --kind pseudonym --out FILE`, then set {ENVIRONMENT}=FILE; keep the file, "
        "without it no patient can be found again"
    )


def _parse(text: str) -> bytes | None:
    """Return the key that ``KEY_DIGITS`` hex digits state; None if the text is anything else."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        return None
    return key if len(text) == KEY_DIGITS and len(key) * 2 == KEY_DIGITS else None
