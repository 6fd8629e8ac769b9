"""Whose scans have one id: who assigned it, where the source tells (docs/corpus.md#who-a-patient-is).

A patient is an id and its authority: the issuer, else the tenant, else the site. An id without an issuer is of the one
authority of its tenant that has this id. Where several have it, nobody can tell whose it is: it stays apart, also when
all others but one are gone, and ``issuer`` is then empty instead of null.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mrcg.privacy.identity import authority_of
from mrcg.privacy.pseudonyms import Pseudonyms
from mrcg.storage import schemas

#: In ``issuer``: none is stated, and several authorities have the id.
UNDECIDED = ""
_COLUMNS = ("bare_id", "issuer", "tenant", "site")


@dataclass(frozen=True)
class Stated:
    """What scans state of their patient, as pseudonyms: all scans with equal ones are of the same patient."""

    bare_id: str
    issuer: str | None
    tenant: str | None
    site: str | None


@dataclass(frozen=True)
class Resolved:
    """Whose scans they are.

    Attributes:
        patient: pseudonym of the person.
        issuer: as stated, or ``UNDECIDED``.
    """

    patient: str
    issuer: str | None


def resolve(stated: Collection[Stated], pseudonyms: Pseudonyms) -> dict[Stated, Resolved]:
    """Return whom each of some statements means, in the light of all others and in any order of them."""
    classes: dict[tuple[str, str | None], list[Stated]] = {}
    for one in dict.fromkeys(stated):
        classes.setdefault((one.bare_id, one.tenant), []).append(one)
    resolved: dict[Stated, Resolved] = {}
    for members in classes.values():
        resolved |= _of_one_id(members, pseudonyms)
    return resolved


def resolve_patients(scans: pa.Table, pseudonyms: Pseudonyms) -> pa.Table:
    """Fill ``patient`` and ``issuer`` of a table of ``schemas.SCANS``; rows without ``bare_id`` stay as they are."""
    codes, stated = _statements(scans)
    if not stated:
        return scans
    resolved = resolve(stated, pseudonyms)
    place = pa.array(codes, mask=codes < 0)
    for name, values in (
        ("patient", [resolved[one].patient for one in stated]),
        ("issuer", [resolved[one].issuer for one in stated]),
    ):
        column = pc.if_else(place.is_valid(), pa.array(values, pa.string()).take(place), scans[name].combine_chunks())
        scans = scans.set_column(scans.schema.get_field_index(name), schemas.SCANS.field(name), column)
    return scans


def with_bare_ids(scans: pa.Table) -> pa.Table:
    """Return scans of a corpus of policy 1 with ``bare_id`` filled: there it was the pseudonym of the patient."""
    field = schemas.SCANS.field("bare_id")
    return scans.set_column(scans.schema.get_field_index(field.name), field, scans["patient"])


def undecided(scans: pa.Table) -> int:
    """Return the number of scans whose id several authorities have, without a word which of them."""
    return int(pc.sum(pc.equal(scans["issuer"], UNDECIDED)).as_py() or 0)


def _statements(scans: pa.Table) -> tuple[npt.NDArray[np.int64], list[Stated]]:
    """Return the (n,) number of each row's statement, -1 without an id, and the statements."""
    columns = [scans[name].combine_chunks().dictionary_encode() for name in _COLUMNS]
    codes = np.zeros(scans.num_rows, dtype=np.int64)
    for column in columns:
        part = pc.fill_null(column.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        codes = np.unique(codes * (len(column.dictionary) + 1) + part + 1, return_inverse=True)[1].astype(np.int64)
    _, first, codes = np.unique(codes, return_index=True, return_inverse=True)
    rows = scans.select(_COLUMNS).take(pa.array(first)).to_pylist()
    known = np.array([row["bare_id"] is not None for row in rows], dtype=bool)
    numbers = np.where(known, np.cumsum(known) - 1, -1)
    return numbers[codes], [Stated(**row) for row in rows if row["bare_id"] is not None]


def _of_one_id(members: Sequence[Stated], pseudonyms: Pseudonyms) -> dict[Stated, Resolved]:
    """Resolve what is stated of one id in one tenant."""

    def as_stated(one: Stated, issuer: str | None) -> Resolved:
        return Resolved(pseudonyms.person(authority_of(issuer, one.tenant, one.site), one.bare_id), issuer)

    def joined(one: Stated, patients: Collection[str]) -> Resolved:
        if len(patients) == 1:
            return Resolved(next(iter(patients)), None)
        return as_stated(one, UNDECIDED if patients else None)

    resolved = {one: as_stated(one, one.issuer) for one in members if one.issuer is not None}
    named = [one for one in resolved if one.issuer != UNDECIDED]
    # A site is an authority, too, where there is no tenant: what names neither comes last.
    placed = [one for one in members if one.issuer is None and (one.tenant or one.site)]
    unplaced = [one for one in members if one.issuer is None and not (one.tenant or one.site)]
    for one in placed:
        near = named if one.tenant else [other for other in named if other.site in (one.site, None)]
        resolved[one] = joined(one, {resolved[other].patient for other in near})
    others = {resolution.patient for resolution in resolved.values()}
    for one in unplaced:
        resolved[one] = joined(one, others)
    return resolved
