"""Signatures under receipts (Ed25519): who has the public key can check them, who has not the key cannot make them."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from mrcg.errors import UsageError, require

ENVIRONMENT = "MRCG_SIGNING_KEY"
KEY_BYTES = 32


class Signature(BaseModel):
    """A signature and the public half of the key that made it, hex."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    public_key: str
    signature: str


class Signer:
    """Signs bytes with a private key."""

    def __init__(self, key: bytes) -> None:
        assert len(key) == KEY_BYTES
        ed25519 = require("cryptography.hazmat.primitives.asymmetric.ed25519")
        self._key = ed25519.Ed25519PrivateKey.from_private_bytes(key)

    @property
    def public_key(self) -> str:
        """Names the signer; anybody may know it."""
        return str(self._key.public_key().public_bytes_raw().hex())

    def sign(self, data: bytes) -> Signature:
        """A signature under bytes."""
        return Signature(public_key=self.public_key, signature=self._key.sign(data).hex())


def is_signed(data: bytes, signature: Signature) -> bool:
    """Whether a signature was made under just these bytes, with the private half of its public key."""
    ed25519 = require("cryptography.hazmat.primitives.asymmetric.ed25519")
    invalid = require("cryptography.exceptions").InvalidSignature
    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.public_key))
        key.verify(bytes.fromhex(signature.signature), data)
    except (invalid, ValueError):
        return False
    return True


def new_signing_key() -> str:
    """A random private key, 64 hex digits."""
    return secrets.token_hex(KEY_BYTES)


def signer_from_environment() -> Signer | None:
    """A signer with the key in ``MRCG_SIGNING_KEY``: 64 hex digits, or the path of a file that holds them.

    Raises:
        UsageError: it is set and neither.
    """
    stated = os.environ.get(ENVIRONMENT, "").strip()
    if not stated:
        return None
    for read in (lambda: stated, lambda: Path(stated).read_text(encoding="ascii").strip()):
        try:
            key = bytes.fromhex(read())
        except (OSError, ValueError):
            continue
        if len(key) == KEY_BYTES:
            return Signer(key)
    # Whatever it is, it may be a key with a typo: it is not shown.
    raise UsageError(
        f"{ENVIRONMENT} is neither {2 * KEY_BYTES} hex digits nor a file that holds them: "
        "`mrcg keys new --kind signing --out FILE` makes one"
    )


def signing_key_needed() -> UsageError:
    """The error that refuses to act without a key to sign the receipt with."""
    return UsageError(
        "a receipt has to be signed: `mrcg keys new --kind signing --out FILE` makes a key, "
        f"then set {ENVIRONMENT}=FILE; its public half is in every receipt"
    )
