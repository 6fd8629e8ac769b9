"""Who a patient is: one form of an id, whichever door it comes in by (docs/corpus.md#who-a-patient-is)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection

from mrcg.text import normalised

#: What separates the values of an id that has several, in DICOM (PS3.5 §6.2).
_SEPARATOR = "\\"
_FLOAT = re.compile(r"(\d+)\.0+")
_NOTHING = frozenset({"nan", "none", "null"})


def patient_id(stated: str | None, unknown: Collection[str] = ()) -> str | None:
    """Return the form of an id that pseudonyms are made of; None where nobody is named. Idempotent.

    Padding goes, also that of each of several values; Unicode is composed (NFC); a whole number has no ``.0`` of a
    table. What a table writes for a missing value, and the placeholders of anonymisers, name nobody.

    Args:
        stated: an id as a header, a table or a person states it.
        unknown: placeholders, compared without case.
    """
    if stated is None:
        return None
    text = normalised(_SEPARATOR.join(normalised(value) for value in stated.split(_SEPARATOR)))
    if match := _FLOAT.fullmatch(text):
        text = match[1]
    folded = text.casefold()
    if not text.strip(_SEPARATOR) or folded in _NOTHING or folded in {one.casefold() for one in unknown}:
        return None
    return text


def authority_of(issuer: str | None, tenant: str | None, site: str | None) -> str:
    """Return what names the authority that assigned an id: its issuer, else the tenant, else the site, else nothing.

    Args:
        issuer: IssuerOfPatientID with its qualifiers, as a row has it (``Pseudonyms.hidden``); None or empty if the
            source names none.
        tenant: of the row.
        site: of the row.
    """
    for kind, name in (("issuer", issuer), ("tenant", tenant), ("site", site)):
        if name:
            return f"{kind}\x1f{name}"
    return ""


def issuer_name(stated: str | None) -> str | None:
    """Return the form of an issuer that authorities are named by; None where nobody is named. Idempotent.

    Args:
        stated: ``local&universal&kind`` as in HL7 (HD): IssuerOfPatientID, and the UniversalEntityID and its type of
            the qualifiers. What is at the end may be missing; a type without a universal id says nothing.
    """
    local, universal, kind = ([normalised(part) for part in (stated or "").split("&", 2)] + ["", ""])[:3]
    return "&".join([local, universal, kind if universal else ""]).rstrip("&") or None


def earlier_forms(stated: str) -> frozenset[str]:
    """Return the forms of an id that earlier versions of MRCG made pseudonyms of, for whoever was erased by them.

    They took an id as it stood, apart from white space at its ends: a list of several values as Python prints it, a
    number with the point of a table of floats, any form of Unicode.
    """
    text = patient_id(stated) or normalised(stated)
    forms = {stated, stated.strip(), stated.strip(" \0"), text, unicodedata.normalize("NFD", text)}
    if text.isdecimal():
        forms.add(f"{text}.0")
    if _SEPARATOR in text:
        forms |= {str(text.split(_SEPARATOR)), str(stated.split(_SEPARATOR))}
    return frozenset(forms - {""})


def similar_ids(stated: str) -> list[str]:
    """Return other ids that somebody may have meant: in another case, with fewer or more leading zeros."""
    text = patient_id(stated) or normalised(stated)
    bare = text.lstrip("0") or text
    padded = [bare.zfill(length) for length in range(len(bare), 13)] if bare.isdecimal() else []
    cases = [text.upper(), text.lower(), text.title(), text.replace(" ", ""), text.replace("-", "")]
    return [one for one in dict.fromkeys([*cases, bare, f"0{text}", *padded]) if one and one != text]
