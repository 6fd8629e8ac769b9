"""Digests: of canonical JSON for versions, of bytes for files, of keys for deterministic draws."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: Any, hex_digits: int = 12) -> str:
    """Short BLAKE2b hash of a JSON value."""
    return hashlib.blake2b(canonical_json(value), digest_size=32).hexdigest()[:hex_digits]


def sha256(data: bytes) -> str:
    """SHA-256 of bytes, hex."""
    return hashlib.sha256(data).hexdigest()


def draw(seed: int, purpose: str, key: str) -> float:
    """A number in [0, 1) that depends on seed, purpose and key alone.

    So a member's draw does not change when others come or go (DESIGN §2: splits never move a group).
    """
    data = f"{seed}\x1f{purpose}\x1f{key}".encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") / 2**64


def seed_of(seed: int, *parts: object) -> int:
    """A 63-bit seed for a generator, derived from the run's seed and what it is for."""
    data = "\x1f".join([str(seed), *map(str, parts)]).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 1
