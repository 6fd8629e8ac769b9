"""The suppression list: who and what must not come back, as keyed hashes (DESIGN §5).

An append-only log below ``log/suppression``. It tells nobody who is on it: without the key an entry cannot be
matched with a patient.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable

from mrcg.errors import AlreadyExistsError
from mrcg.hashing import digest
from mrcg.privacy.pseudonyms import Pseudonyms
from mrcg.storage.store import Store

FOLDER = "log/suppression"
PATIENT, IMAGE, PIXELS = "patient", "image", "pixels"


def token(pseudonyms: Pseudonyms | None, kind: str, value: str) -> str:
    """The entry that suppresses a patient (by pseudonym), an image (by id) or pixels (by hash)."""
    if pseudonyms is None:
        return digest(["suppress", kind, value], 32)
    return pseudonyms.name("suppress", f"{kind}\x1f{value}")


def suppress(store: Store, tokens: Iterable[str]) -> None:
    """Add entries; what is on the list stays on it."""
    entries = sorted(set(tokens))
    with contextlib.suppress(AlreadyExistsError):
        store.create(f"{FOLDER}/{digest(entries, 32)}.json", json.dumps(entries).encode())


def list_digest(store: Store) -> str:
    """Digest of the whole list: part of the version of every corpus that obeys it."""
    return digest(sorted(suppressed(store)), 32)


def suppressed(store: Store) -> frozenset[str]:
    """All entries."""
    return frozenset(
        entry
        for name in store.listdir(FOLDER)
        if name.endswith(".json")
        for entry in store.read_json(f"{FOLDER}/{name}")
    )
