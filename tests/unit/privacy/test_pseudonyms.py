import datetime
import pickle
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.factories import rules_of

from mrcg.errors import IntegrityError, UsageError
from mrcg.privacy.pseudonyms import (
    ENVIRONMENT,
    KEPT_FIELDS,
    KEY_DIGITS,
    Pseudonyms,
    missing_key_error,
    new_key,
    pseudonyms_from_environment,
)

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
NAMES, OTHER = Pseudonyms(KEY), Pseudonyms(OTHER_KEY)
KINDS = st.sampled_from(["patient", "study", "accession", "path", "site"])
DAYS = st.dates(datetime.date(1900, 1, 1), datetime.date(2100, 1, 1))
#: PS3.5 §9.1: digits and points, no leading zeros, at most 64 characters.
UID = re.compile(r"(?=.{1,64}$)(0|[1-9]\d*)(\.(0|[1-9]\d*))+")
DIGITS = set(string.hexdigits.lower())


@given(KINDS, st.text())
def test_names_are_equal_under_one_key_and_differ_under_two(kind, value):
    name = NAMES.name(kind, value)
    assert name == Pseudonyms(KEY).name(kind, value)
    assert name != OTHER.name(kind, value)
    assert len(name) == 32
    assert set(name) <= DIGITS


@given(KINDS, KINDS, st.text(), st.text())
def test_different_kinds_and_values_have_different_names(kind, other, value, changed):
    same = (kind, value) == (other, changed)
    assert (NAMES.name(kind, value) == NAMES.name(other, changed)) == same
    assert (NAMES.uid(kind, value) == NAMES.uid(other, changed)) == same


@given(KINDS, st.text())
def test_uids_are_valid_and_never_the_original(kind, value):
    mapped = NAMES.uid(kind, value)
    assert UID.fullmatch(mapped)
    assert mapped.startswith("2.25.")
    assert int(mapped.removeprefix("2.25.")) < 2**128
    assert mapped == Pseudonyms(KEY).uid(kind, value) != OTHER.uid(kind, value)
    assert NAMES.uid(kind, mapped) != mapped


def test_text_that_is_not_valid_unicode_has_a_name():
    assert NAMES.name("patient", "\udcff") != NAMES.name("patient", "\udcfe")


@given(st.text(), DAYS, DAYS)
def test_days_are_shifted_and_intervals_stay(patient, first, second):
    moved = [NAMES.shifted(day, patient) for day in (first, second)]
    assert moved[1] - moved[0] == second - first
    assert 0 < abs((moved[0] - first).days) <= 182
    assert moved[0] == Pseudonyms(KEY).shifted(first, patient)


def test_offsets_differ_by_patient_and_key():
    day = datetime.date(2020, 6, 1)
    offsets = {(NAMES.shifted(day, str(n)) - day).days for n in range(2000)}
    assert min(offsets) <= -170
    assert max(offsets) >= 170
    assert len(offsets) > 300
    assert 0 not in offsets
    assert any(NAMES.shifted(day, str(n)) != OTHER.shifted(day, str(n)) for n in range(3))


@pytest.mark.parametrize("day", [datetime.date.min, datetime.date.max])
def test_days_at_the_ends_of_the_calendar(day):
    for n in range(50):
        shifted = NAMES.shifted(day, str(n))
        assert shifted != datetime.date.max
        assert abs((shifted - day).days) <= 366


def test_no_output_reveals_the_key():
    shown = [repr(NAMES), str(NAMES), f"{NAMES}", repr(rules_of(pseudonyms=NAMES)), str(NAMES.policy())]
    for text in shown:
        assert NAMES.fingerprint in text
        assert KEY.hex() not in text
        assert repr(KEY)[2:-1] not in text
    assert NAMES.fingerprint == Pseudonyms(KEY).fingerprint != OTHER.fingerprint
    assert set(NAMES.fingerprint) <= DIGITS
    assert NAMES.fingerprint not in KEY.hex()
    assert NAMES.policy()["key"] == NAMES.fingerprint
    assert NAMES.policy()["kept"] == list(KEPT_FIELDS)


def test_pickled_pseudonyms_give_the_same_names():
    copy = pickle.loads(pickle.dumps(NAMES))
    assert copy.name("patient", "P1") == NAMES.name("patient", "P1")
    assert copy.fingerprint == NAMES.fingerprint


def test_new_keys_are_random_and_valid():
    keys = {new_key() for _ in range(20)}
    assert len(keys) == 20
    for key in keys:
        assert len(key) == KEY_DIGITS
        assert set(key) <= DIGITS
        assert Pseudonyms(bytes.fromhex(key)).fingerprint


@pytest.mark.parametrize("write", ["{}", " {}\n", "file", "file with a newline", "upper case"])
def test_a_key_comes_from_the_environment_or_a_file(monkeypatch, tmp_path, write):
    stated = write.format(KEY.hex())
    if write.startswith("file"):
        stated = tmp_path / "key"
        stated.write_text(KEY.hex() + ("\n" if "newline" in write else ""))
    elif write == "upper case":
        stated = KEY.hex().upper()
    monkeypatch.setenv(ENVIRONMENT, str(stated))
    assert pseudonyms_from_environment().fingerprint == NAMES.fingerprint


@pytest.mark.parametrize("stated", [None, "", "  "])
def test_without_a_key_there_are_no_pseudonyms(monkeypatch, stated):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    if stated is not None:
        monkeypatch.setenv(ENVIRONMENT, stated)
    assert pseudonyms_from_environment() is None


WRONG = [KEY.hex()[:-1], KEY.hex() + "0", KEY.hex()[:-1] + "g", KEY.hex()[:-2], "x" * 5000, "/no/such/file", "secret?"]


@pytest.mark.parametrize("stated", [*WRONG, " ".join(KEY.hex()[n : n + 2] for n in range(0, 64, 2))])
@pytest.mark.parametrize("in_file", [False, True])
def test_an_invalid_key_is_not_quoted(monkeypatch, tmp_path, stated, in_file):
    path = tmp_path / "key"
    path.write_text(stated)
    monkeypatch.setenv(ENVIRONMENT, str(path) if in_file else stated)
    with pytest.raises(
        UsageError, match=f"{ENVIRONMENT} is neither 64 hex digits nor the path of a file .*mrcg keys new"
    ) as caught:
        pseudonyms_from_environment()
    assert stated not in str(caught.value)
    assert stated[:20] not in str(caught.value) or len(stated) < 10
    assert caught.value.__cause__ is caught.value.__context__ is None, "a traceback would show it"


@pytest.mark.parametrize("data", [b"\xff" * 64, b"", b"\0" * 64])
def test_a_file_without_a_key_is_refused(monkeypatch, tmp_path, data):
    path = tmp_path / "key"
    path.write_bytes(data)
    for stated in (path, tmp_path):
        monkeypatch.setenv(ENVIRONMENT, str(stated))
        with pytest.raises(UsageError, match="is neither"):
            pseudonyms_from_environment()


def test_scans_that_identify_patients_need_a_key():
    error = missing_key_error("DICOM files")
    assert isinstance(error, UsageError)
    assert str(error).startswith("DICOM files identify patients")
    assert ENVIRONMENT in str(error)


@given(st.binary(max_size=200), st.text(max_size=20), st.integers(0, 10_000))
def test_sealed_bytes_are_read_with_the_same_key_and_name_alone(data, name, place):
    sealed = NAMES.seal(data, name)
    assert NAMES.unseal(sealed, name) == data
    assert len(data) < 8 or data not in sealed
    assert NAMES.seal(data, name) != sealed, "no nonce is used twice"
    flipped = bytearray(sealed)
    flipped[place % len(sealed)] ^= 1 << place % 8
    for changed, key, called in ((bytes(flipped), NAMES, name), (sealed, OTHER, name), (sealed, NAMES, name + "x")):
        with pytest.raises(IntegrityError, match="was changed after it was encrypted, or with another key"):
            key.unseal(changed, called)
