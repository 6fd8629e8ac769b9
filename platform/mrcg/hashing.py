"""Hashes of JSON values (versions) and of bytes (files), and deterministic random numbers and seeds."""

from __future__ import annotations

import hashlib
import json
from typing import IO, Any

#: Bytes that are read at a time.
_BLOCK = 2**22


def canonical_json(value: Any) -> bytes:
    """Encode a value as JSON with sorted keys and no spaces, so that equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: Any, hex_digits: int = 12) -> str:
    """Return the first ``hex_digits`` hex digits (at most 64) of the BLAKE2b-256 hash of a JSON value."""
    return hashlib.blake2b(canonical_json(value), digest_size=32).hexdigest()[:hex_digits]


def sha256(data: bytes) -> str:
    """Return the SHA-256 of bytes in hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_of(file: IO[bytes]) -> tuple[int, str]:
    """Return the size in bytes and the SHA-256 in hex of the rest of a file, which is read block by block."""
    size, state = 0, hashlib.sha256()
    while block := file.read(_BLOCK):
        size += len(block)
        state.update(block)
    return size, state.hexdigest()


def draw(seed: int, purpose: str, key: str) -> float:
    """Return a number in [0, 1) that depends only on seed, purpose and key.

    The draw of one member does not change when other members are added or removed, so a split never moves a group
    (`docs/design.md#determinism`).
    """
    data = f"{seed}\x1f{purpose}\x1f{key}".encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") / 2**64


def seed_of(seed: int, *parts: object) -> int:
    """Derive a 63-bit seed for a random generator from the run's seed and the parts that name its purpose."""
    data = "\x1f".join([str(seed), *map(str, parts)]).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 1
