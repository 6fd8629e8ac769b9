import json

from hypothesis import given
from hypothesis import strategies as st

from mrcg.privacy.pseudonyms import Pseudonyms
from mrcg.privacy.suppression import FOLDER, IMAGE, PATIENT, PIXELS, suppress, suppressed, token

KEYS = [None, Pseudonyms(bytes(32)), Pseudonyms(bytes(range(32)))]
KINDS = [PATIENT, IMAGE, PIXELS]


@given(st.text(), st.text())
def test_entries_differ_by_kind_value_and_key(value, other):
    entries = {token(key, kind, one) for key in KEYS for kind in KINDS for one in {value, other}}
    assert len(entries) == len(KEYS) * len(KINDS) * len({value, other})
    assert all(len(entry) == 32 for entry in entries)
    assert token(KEYS[1], PATIENT, value) == token(Pseudonyms(bytes(32)), PATIENT, value)
    assert KEYS[1].name(PATIENT, value) not in entries, "an entry is no pseudonym that a corpus holds"


def test_a_new_store_suppresses_nobody(store):
    assert suppressed(store) == frozenset()


def test_entries_are_never_removed(store):
    suppress(store, ["b", "a"])
    assert suppressed(store) == {"a", "b"}
    suppress(store, ["c"])
    suppress(store, [])
    assert suppressed(store) == {"a", "b", "c"}


def test_existing_entries_are_not_written_again(store):
    suppress(store, ["a", "b"])
    names = store.listdir(FOLDER)
    for again in (["b", "a"], ["a", "b", "a"], {"a", "b"}):
        suppress(store, again)
    assert store.listdir(FOLDER) == names
    suppress(store, ["a"])
    assert len(store.listdir(FOLDER)) == 2
    assert suppressed(store) == {"a", "b"}


def test_the_list_does_not_reveal_patients(store):
    suppress(store, [token(KEYS[1], PATIENT, "DOE^JANE")])
    (name,) = store.listdir(FOLDER)
    text = store.read_bytes(f"{FOLDER}/{name}").decode()
    assert json.loads(text) == [token(KEYS[1], PATIENT, "DOE^JANE")]
    assert "JANE" not in text + name


def test_other_files_in_the_folder_are_not_read(store):
    suppress(store, ["a"])
    store.create(f"{FOLDER}/note.txt", b"not an entry")
    assert suppressed(store) == {"a"}
