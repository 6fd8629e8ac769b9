"""Texts that look equal are equal: labels, sites, sequences and ids in one Unicode form."""

from __future__ import annotations

import unicodedata

#: What pads a text besides white space.
_PADDING = "\0\ufeff"


def normalised(text: str) -> str:
    """Return a text in Unicode's composed form (NFC), without padding at its ends. Idempotent."""
    while True:
        shorter = unicodedata.normalize("NFC", text.strip(_PADDING).strip())
        if shorter == text:
            return text
        text = shorter


def normalised_or_none(text: str | None) -> str | None:
    """Do the same; None for a text that is absent, or empty without its padding."""
    return None if text is None else normalised(text) or None
