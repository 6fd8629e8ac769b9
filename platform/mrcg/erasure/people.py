"""Whom an erasure means: the people in a store who have an id (docs/corpus.md#who-a-patient-is)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from mrcg.corpus.patients import Stated, resolve
from mrcg.corpus.reader import read_scans
from mrcg.erasure.records import ErasureTarget
from mrcg.errors import AmbiguousError, UsageError
from mrcg.frozen import Frozen
from mrcg.privacy.identity import authority_of, earlier_forms, issuer_name, patient_id, similar_ids
from mrcg.privacy.pseudonyms import Pseudonyms
from mrcg.privacy.suppression import PATIENT, suppressed, token
from mrcg.storage.store import Store
from mrcg.text import normalised_or_none

#: Kinds of entries of the suppression list that keep nothing out: what was asked, and ids of several people.
_ASKED, _SEVERAL = "asked", "several"


class AskedPatient(Frozen):
    """A patient as somebody who wants an erasure states them; an empty issuer is one that the source does not name."""

    patient: str
    issuer: str | None = None
    tenant: str | None = None
    site: str | None = None

    @property
    def says_who(self) -> bool:
        """Whether more than the id is stated."""
        return any(one is not None for one in (self.issuer, self.tenant, self.site))


class _Row(NamedTuple):
    """The columns of a scan that say whose it is."""

    image_id: str
    patient: str
    bare_id: str | None
    issuer: str | None
    tenant: str | None
    site: str | None


@dataclass
class Person:
    """A patient in the corpora of a store.

    Attributes:
        patient: pseudonym.
        images: ids of the scans.
        of_policy_1: those of them in corpora that know a patient by the id alone.
        stated: what the scans state of their patient.
    """

    patient: str
    images: set[str] = field(default_factory=set)
    of_policy_1: set[str] = field(default_factory=set)
    stated: set[Stated] = field(default_factory=set)

    def is_meant(self, asked: AskedPatient, pseudonyms: Pseudonyms) -> bool:
        """Return whether all that is asked for is true of one of the scans, or of several."""
        issuer, tenant, site = _wanted(asked, pseudonyms)
        return all(
            wanted is None or wanted in known
            for wanted, known in (
                (issuer, self.issuers or {""}),
                (tenant, {one.tenant for one in self.stated}),
                (site, {one.site for one in self.stated}),
            )
        )

    @property
    def issuers(self) -> set[str]:
        """The stated issuers, encrypted."""
        return {one.issuer for one in self.stated if one.issuer}

    def described(self, pseudonyms: Pseudonyms) -> str:
        """Return who assigned the id and how many scans there are, for a message."""
        names = [f"issuer {name}" for name in sorted(map(pseudonyms.revealed, self.issuers))] or ["no issuer"]
        for kind, values in (
            ("tenant", {one.tenant for one in self.stated}),
            ("site", {one.site for one in self.stated}),
        ):
            names += [f"{kind} {value}" for value in sorted(value for value in values if value)]
        return f"{', '.join(names)}: {len(self.images)} scans"


def find_patient(store: Store, asked: AskedPatient, pseudonyms: Pseudonyms) -> ErasureTarget:
    """Return the target of an erasure; it may be one of whom no corpus has scans.

    Raises:
        UsageError: the id names nobody.
        AmbiguousError: several people have the id, and what is asked does not say which.
    """
    ident = patient_id(asked.patient)
    if ident is None:
        raise UsageError("--patient is empty: give the patient id as in the source")
    bare_id = pseudonyms.name("patient", ident)
    people = people_with(store, asked.patient, pseudonyms)
    meant = [person for person in people if person.is_meant(asked, pseudonyms)]
    several_mark = token(pseudonyms, _SEVERAL, bare_id)
    several = len(people) > 1 or several_mark in suppressed(store)
    marks = [_mark_of(asked, bare_id, pseudonyms)]
    if len(meant) > 1 or (several and people and not asked.says_who):
        raise _ambiguous(asked, meant, pseudonyms)
    if several:
        marks.append(several_mark)
    elif meant:
        marks.append(_mark_of(AskedPatient(patient=asked.patient), bare_id, pseudonyms))
    earlier = {pseudonyms.name("patient", form) for form in earlier_forms(asked.patient)} | {bare_id}
    if not meant:
        # Nobody in this store has the id. Where no authority is asked for, it is kept out whoever assigned it.
        patient = pseudonyms.person(authority_of(*_wanted(asked, pseudonyms)), bare_id)
        return ErasureTarget(
            kind=PATIENT,
            value=patient,
            others=() if asked.says_who else (bare_id,),
            marks=tuple(marks),
            earlier=tuple(sorted({*marks, *(token(pseudonyms, PATIENT, one) for one in {patient, *earlier})})),
        )
    (person,) = meant
    return ErasureTarget(
        kind=PATIENT,
        value=person.patient,
        others=tuple(sorted(_without_issuer(person, bare_id, several, pseudonyms) - {person.patient})),
        images=tuple(sorted(person.of_policy_1)),
        marks=tuple(marks),
    )


def people_with(store: Store, stated: str, pseudonyms: Pseudonyms) -> list[Person]:
    """Return the people in all corpora who have an id, in the order of their pseudonyms."""
    bare_id = pseudonyms.name("patient", patient_id(stated) or stated)
    forms = {bare_id, *(pseudonyms.name("patient", form) for form in earlier_forms(stated))}
    people: dict[str, Person] = {}
    known: dict[str, str] = {}
    unresolved: list[tuple[str, Stated]] = []
    for row in _rows_with(store, forms):
        facts = Stated(bare_id, row.issuer, row.tenant, row.site)
        if row.bare_id is None:
            unresolved.append((row.image_id, facts))
            continue
        person = people.setdefault(row.patient, Person(row.patient))
        person.images.add(row.image_id)
        person.stated.add(facts)
        known[row.image_id] = row.patient
    # Corpora of policy 1 know no issuer: the same scan in a later corpus tells, else the rules for ids without one.
    resolved = resolve(
        [*(one for person in people.values() for one in person.stated), *(facts for _, facts in unresolved)], pseudonyms
    )
    for image_id, facts in unresolved:
        patient = known.get(image_id) or resolved[facts].patient
        person = people.setdefault(patient, Person(patient))
        person.images.add(image_id)
        person.of_policy_1.add(image_id)
        person.stated.add(facts)
    return sorted(people.values(), key=lambda person: person.patient)


def describe_similar(store: Store, asked: AskedPatient, pseudonyms: Pseudonyms) -> list[str]:
    """Return whom a question may have meant that meets nobody: others who have the id, and similar ids."""
    same = [
        f"{asked.patient} ({person.described(pseudonyms)})" for person in people_with(store, asked.patient, pseudonyms)
    ]
    names = {pseudonyms.name("patient", one): one for one in similar_ids(asked.patient)}
    found: dict[str, set[str]] = {}
    for row in _rows_with(store, names):
        found.setdefault(names[row.bare_id or row.patient], set()).add(row.image_id)
    return same + [f"{one} ({len(images)} scans)" for one, images in sorted(found.items())]


def _rows_with(store: Store, ids: Iterable[str]) -> Iterator[_Row]:
    """Yield all scans whose patient's id has one of some pseudonyms."""
    values = pa.array(sorted(ids), pa.string())
    for version in store.versions("corpus"):
        scans = read_scans(store.artefact("corpus", version), list(_Row._fields))
        found = scans.filter(pc.is_in(pc.coalesce(scans["bare_id"], scans["patient"]), values))
        yield from (_Row(**row) for row in found.to_pylist())


def _wanted(asked: AskedPatient, pseudonyms: Pseudonyms) -> tuple[str | None, str | None, str | None]:
    """Return issuer, tenant and site as rows have them."""
    name = issuer_name(asked.issuer)
    issuer = asked.issuer if name is None else pseudonyms.hidden(name)
    return issuer and issuer.strip(), normalised_or_none(asked.tenant), normalised_or_none(asked.site)


def _mark_of(asked: AskedPatient, bare_id: str, pseudonyms: Pseudonyms) -> str:
    """Return the entry by which the same question finds its erasure again when all scans are gone."""
    return token(pseudonyms, _ASKED, json.dumps([bare_id, *_wanted(asked, pseudonyms)]))


def _without_issuer(person: Person, bare_id: str, several: bool, pseudonyms: Pseudonyms) -> set[str]:
    """Return the pseudonyms that scans of a person have, or would have without an issuer if they came again.

    Where several people have the id, scans without an issuer are only kept out as far as they were the person's.
    """
    facts: Sequence[Stated] = sorted(person.stated, key=repr)
    if several:
        facts = [one for one in facts if not one.issuer]
    names = {pseudonyms.person(authority_of(None, one.tenant, one.site), bare_id) for one in facts}
    return names if several else names | {pseudonyms.person("", bare_id)}


def _ambiguous(asked: AskedPatient, people: Sequence[Person], pseudonyms: Pseudonyms) -> AmbiguousError:
    known = "; ".join(sorted(person.described(pseudonyms) for person in people))
    return AmbiguousError(
        f"patient id {asked.patient} is that of several people ({known}): nothing was erased; say whom you mean with "
        "--issuer, --tenant or --site, and --issuer '' where the source names none"
    )
