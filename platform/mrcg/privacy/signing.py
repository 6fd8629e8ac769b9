"""Ed25519 signatures of receipts: anyone with the public key can check them; only the private key can make them."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from mrcg.errors import UsageError, require
from mrcg.frozen import Frozen

ENVIRONMENT = "MRCG_SIGNING_KEY"
KEY_BYTES = 32


class Signature(Frozen):
    """A signature and the public key that verifies it, both in hex."""

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
        """The public key in hex; it identifies the signer and is not secret."""
        return str(self._key.public_key().public_bytes_raw().hex())

    def sign(self, data: bytes) -> Signature:
        """Sign bytes."""
        return Signature(public_key=self.public_key, signature=self._key.sign(data).hex())


def is_signed(data: bytes, signature: Signature) -> bool:
    """Return whether the signature is valid for exactly these bytes and for its own public key."""
    ed25519 = require("cryptography.hazmat.primitives.asymmetric.ed25519")
    invalid = require("cryptography.exceptions").InvalidSignature
    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.public_key))
        key.verify(bytes.fromhex(signature.signature), data)
    except (invalid, ValueError):
        return False
    return True


def new_signing_key() -> str:
    """Return a random private key of 64 hex digits."""
    return secrets.token_hex(KEY_BYTES)


def signer_from_environment() -> Signer | None:
    """Return a signer with the key in ``MRCG_SIGNING_KEY``; None if the variable is unset or empty.

    The variable holds 64 hex digits, or the path of a file that holds them.

    Raises:
        UsageError: the variable holds neither.
    """
    setting = os.environ.get(ENVIRONMENT, "").strip()
    if not setting:
        return None
    for read in (lambda: setting, lambda: Path(setting).read_text(encoding="ascii").strip()):
        try:
            key = bytes.fromhex(read())
        except (OSError, ValueError):
            continue
        if len(key) == KEY_BYTES:
            return Signer(key)
    # The message does not quote the value: it may be a real key with a typo.
    raise UsageError(
        f"{ENVIRONMENT} is neither {2 * KEY_BYTES} hex digits nor the path of a file that holds them: "
        "create a key with `mrcg keys new --kind signing --out FILE`"
    )


def missing_signing_key_error() -> UsageError:
    """Return the error that refuses a command whose receipt needs a signature when no signing key is set."""
    return UsageError(
        "a receipt must be signed: create a key with `mrcg keys new --kind signing --out FILE`, "
        f"then set {ENVIRONMENT}=FILE; every receipt contains its public key"
    )
