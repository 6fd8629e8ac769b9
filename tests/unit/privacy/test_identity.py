"""One form of an id, at every door."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import factories
from tests.unit.corpus.test_ingestion import one_row

from mrcg.config.not_scans import PLACEHOLDERS
from mrcg.corpus.ingestion import is_suppressed
from mrcg.corpus.sources import SourceFile
from mrcg.erasure.people import AskedPatient, find_patient
from mrcg.errors import IntegrityError, UsageError
from mrcg.imaging.slices import ScanFacts
from mrcg.privacy.identity import authority_of, earlier_forms, issuer_name, patient_id, similar_ids
from mrcg.privacy.pseudonyms import Pseudonyms
from mrcg.privacy.suppression import PATIENT, token
from mrcg.storage.store import Store

KEY = Pseudonyms(bytes(range(32)))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A store without a corpus."""
    return Store(str(tmp_path_factory.mktemp("empty") / "store"))


@given(st.text())
def test_the_form_of_an_id_stays_as_it_is(text):
    once = patient_id(text)
    assert once is None or patient_id(once) == once


@given(TEXT)
def test_every_form_of_a_text_gives_one_id(text):
    forms = {patient_id(unicodedata.normalize(form, text)) for form in ("NFC", "NFD")}
    padded = [f"{before}{text}{after}" for before in ("", " ", "\t") for after in ("", "\0", " \0 ", "\r\n")]
    assert len(forms | {patient_id(one) for one in padded}) == 1


@pytest.mark.parametrize(
    ("stated", "ident"),
    [
        ("HOSP\\4711", "HOSP\\4711"),
        (" 0815 \\ 0815\0", "0815\\0815"),
        (" 77 ", "77"),
        ("88\t", "88"),
        ("ID-\u5c71\u7530", "ID-\u5c71\u7530"),
        ("123.0", "123"),
        ("123.00", "123"),
        ("123.5", "123.5"),
        ("0099", "0099"),
        ("", None),
        (" \0", None),
        ("\\", None),
        ("NaN", None),
        ("None", None),
        (None, None),
    ],
)
def test_ids_as_headers_and_tables_have_them(stated, ident):
    assert patient_id(stated) == ident


@pytest.mark.parametrize("stated", ["ANONYMOUS", "Anonymised ", "unknown", "0", "0.0", "N/A", "--"])
def test_placeholders_name_nobody(stated):
    assert patient_id(stated, PLACEHOLDERS) is None
    assert patient_id(stated) is not None


def row_of(stated, rules, by_manifest):
    file = SourceFile("1", "s", patient=stated if by_manifest else None)
    return one_row(file, rules, ScanFacts(patient=None if by_manifest else stated, study="1.2"))


@given(TEXT)
def test_a_header_a_manifest_and_the_command_make_one_pseudonym(empty, stated):
    rules = factories.rules_of(pseudonyms=KEY)
    named = patient_id(stated, PLACEHOLDERS) is not None
    rows = [row_of(stated, rules, by_manifest) for by_manifest in (True, False)]
    if not named:
        assert {row["patient"] for row in rows} == {None}
        return
    asked = find_patient(empty, AskedPatient(patient=stated), KEY)
    assert {row["patient"] for row in rows} == {asked.value} == {KEY.person("", rows[0]["bare_id"])}
    assert {row["bare_id"] for row in rows} == {KEY.name("patient", patient_id(stated))}


def test_where_the_manifest_names_nobody_the_header_may():
    row = one_row(
        SourceFile("1", "s", patient="unknown"), factories.rules_of(pseudonyms=KEY), ScanFacts(patient="4711")
    )
    assert row["bare_id"] == KEY.name("patient", "4711")


@pytest.mark.parametrize("stated", ["", " ", "\0", "nan"])
def test_a_command_for_nobody_is_refused(empty, stated):
    with pytest.raises(UsageError, match="give the patient id as in the source"):
        find_patient(empty, AskedPatient(patient=stated), KEY)


@pytest.mark.parametrize(
    ("stated", "old"),
    [
        ("HOSP\\4711", "['HOSP', '4711']"),
        ("88\t", "88\t"),
        ("88\t", "88"),
        ("123", "123.0"),
        ("123.0", "123.0"),
        ("J\u00fcrgen", "Ju\u0308rgen"),
        ("plain", "plain"),
    ],
)
def test_whoever_was_erased_by_an_earlier_version_stays_erased(empty, stated, old):
    assert old in earlier_forms(stated)
    rules = factories.rules_of(pseudonyms=KEY, suppressed=[token(KEY, PATIENT, KEY.name("patient", old))])
    row = {"image_id": "i", "pixel_hash": "p", "patient": KEY.name("patient", patient_id(stated))}
    assert is_suppressed(row, rules, stated)
    assert not is_suppressed(row | {"patient": "another"}, rules, "another")
    assert (
        token(KEY, PATIENT, KEY.name("patient", old)) in find_patient(empty, AskedPatient(patient=stated), KEY).earlier
    )
    assert row_of(stated, rules, by_manifest=False)["reason"] == "suppressed"


def test_similar_ids_are_those_that_people_confuse():
    assert {"815", "00815"} <= set(similar_ids("0815"))
    assert "0000099" in similar_ids("99")
    assert {"AB-1", "ab1"} <= set(similar_ids("ab-1"))
    assert "x" not in similar_ids("x")


@pytest.mark.parametrize(
    ("stated", "name"),
    [
        ("HOSPITAL_A", "HOSPITAL_A"),
        (" HOSPITAL_A &1.2.3 & ISO", "HOSPITAL_A&1.2.3&ISO"),
        ("&1.2.3&ISO", "&1.2.3&ISO"),
        ("HOSPITAL_A&&ISO", "HOSPITAL_A"),
        ("R&D&1&2", "R&D&1&2"),
        ("& ", None),
        (None, None),
    ],
)
def test_an_issuer_has_its_qualifiers_in_its_name(stated, name):
    assert issuer_name(stated) == name


@given(st.text("AB &", max_size=12))
def test_the_name_of_an_issuer_is_hidden_and_can_be_revealed(stated):
    name = issuer_name(stated)
    assert issuer_name(name) == name
    if name is not None:
        assert KEY.revealed(KEY.hidden(name)) == name
        assert KEY.hidden(name) == KEY.hidden(name)
        with pytest.raises(IntegrityError, match="with another key"):
            Pseudonyms(bytes(32)).revealed(KEY.hidden(name))


def test_an_authority_is_the_issuer_else_the_tenant_else_the_site():
    known = [authority_of(*words) for words in (("i", "t", "s"), (None, "t", "s"), ("", "t", "s"), (None, None, "s"))]
    assert known[1] == known[2]
    assert len({*known, authority_of(None, None, None), authority_of("t", None, None)}) == 5


@pytest.mark.parametrize(
    ("in_table", "in_header", "expected"),
    [
        ((None, None), ("7", "H"), ("7", "H")),
        (("7", None), ("7", "H"), ("7", "H")),
        (("07", None), ("7", "H"), ("07", None)),
        (("07", "M"), ("7", "H"), ("07", "M")),
        (("unknown", None), ("7", "H"), ("7", "H")),
    ],
)
def test_the_issuer_of_a_header_assigned_the_id_in_that_header(in_table, in_header, expected):
    file = SourceFile("1", "s", patient=in_table[0], issuer=in_table[1])
    row = one_row(file, factories.rules_of(pseudonyms=KEY), ScanFacts(patient=in_header[0], issuer=in_header[1]))
    ident, issuer = expected
    assert row["bare_id"] == KEY.name("patient", ident)
    assert row["issuer"] == (None if issuer is None else KEY.hidden(issuer))
    assert row["patient"] == KEY.person(authority_of(row["issuer"], None, None), row["bare_id"])
