"""The suppression list: hashes of patients, images and pixels that must not be ingested again.

See `docs/index.md#erasure`. The list is an append-only log below ``log/suppression``. With a pseudonym key its entries
are keyed hashes, so an entry cannot be matched with a patient without the key.
"""

from __future__ import annotations

from collections.abc import Iterable

from mrcg.hashing import digest
from mrcg.privacy.pseudonyms import Pseudonyms
from mrcg.storage.append_log import AppendLog
from mrcg.storage.store import Store

FOLDER = "log/suppression"
PATIENT, IMAGE, PIXELS = "patient", "image", "pixels"


def token(pseudonyms: Pseudonyms | None, kind: str, value: str) -> str:
    """Return the entry that suppresses a patient (by pseudonym), an image (by id) or pixels (by hash).

    Args:
        pseudonyms: the key of the entry; without one the entry is a plain hash.
        kind: ``PATIENT``, ``IMAGE`` or ``PIXELS``.
        value: the pseudonym, image id or pixel hash.
    """
    if pseudonyms is None:
        return digest(["suppress", kind, value], 32)
    return pseudonyms.name("suppress", f"{kind}\x1f{value}")


def suppress(store: Store, tokens: Iterable[str]) -> None:
    """Add entries to the list. Entries are never removed."""
    AppendLog(store, FOLDER).add(tokens)


def list_digest(store: Store) -> str:
    """Return the digest of the whole list; it is part of the version of every corpus that the list was applied to."""
    return digest(sorted(suppressed(store)), 32)


def suppressed(store: Store) -> frozenset[str]:
    """Return all entries of the list."""
    return AppendLog(store, FOLDER).entries()
