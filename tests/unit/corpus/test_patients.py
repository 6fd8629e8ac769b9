"""Whose scans have one id: the rules for ids whose issuer is not stated."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.corpus.patients import UNDECIDED, Stated, resolve, resolve_patients, undecided, with_bare_ids
from mrcg.privacy.identity import authority_of
from mrcg.privacy.pseudonyms import Pseudonyms
from mrcg.storage import schemas

KEY = Pseudonyms(bytes(range(32)))
IDS = st.sampled_from(["1001", "1002"])
STATED = st.builds(
    Stated, IDS, st.sampled_from([None, "A", "B"]), st.sampled_from([None, "T", "U"]), st.sampled_from([None, "s", "r"])
)


def person(issuer=None, tenant=None, site=None, bare_id="1001"):
    return KEY.person(authority_of(issuer, tenant, site), bare_id)


def patients(*stated):
    """The patient of each (issuer, tenant, site), all with one id."""
    members = [Stated("1001", *words) for words in stated]
    resolved = resolve(members, KEY)
    return [resolved[one].patient for one in members]


def scans(*stated):
    rows = [
        {
            "image_id": f"i{n}", "file": "f", "file_row": n, "group_id": "", "joins": [], "cluster_id": "", "generation": 0,
            "source_key": f"k{n}", "stamp": "s", "frame": 0, "pixel_hash": f"p{n}", "difference_hash": bytes(32),
            "bare_id": one and one.bare_id, "issuer": one and one.issuer, "tenant": one and one.tenant,
            "site": one and one.site,
        }
        for n, one in enumerate(stated)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schemas.SCANS)


def test_one_id_of_two_issuers_is_of_two_people():
    assert patients(("A", "T", None), ("B", "T", None)) == [person("A"), person("B")]


def test_without_an_issuer_the_tenant_tells_else_the_site():
    assert patients((None, "T", "s"), (None, "T", "r"), (None, "U", "s")) == [
        person(tenant="T"), person(tenant="T"), person(tenant="U"),
    ]  # fmt: skip
    assert patients((None, None, "s"), (None, None, "r")) == [person(site="s"), person(site="r")]
    assert patients((None, None, None)) == [person()]


def test_an_id_without_issuer_is_of_the_one_issuer_of_its_tenant():
    assert patients((None, "T", None), ("A", "T", None), ("B", "U", None)) == [person("A"), person("A"), person("B")]


def test_without_a_tenant_it_is_of_the_one_at_its_site():
    assert patients((None, None, "s"), ("A", None, "s"), ("B", None, "r")) == [person("A"), person("A"), person("B")]
    assert patients((None, None, "s"), ("A", None, "r")) == [person(site="s"), person("A")]
    assert patients((None, None, "s"), ("A", None, None)) == [person("A"), person("A")]


def test_what_names_no_place_is_of_the_one_authority_there_is():
    assert patients((None, None, None), (None, None, "s")) == [person(site="s"), person(site="s")]
    assert patients((None, None, None), ("A", None, "s"), (None, None, "s")) == [person("A")] * 3
    assert patients((None, None, None), (None, None, "s"), (None, None, "r"))[0] == person()


def test_where_several_have_the_id_it_stays_apart_and_is_counted():
    table = resolve_patients(scans(*(Stated("1001", issuer, "T", None) for issuer in ("A", "B", None))), KEY)
    assert table["patient"].to_pylist() == [person("A"), person("B"), person(tenant="T")]
    assert table["issuer"].to_pylist() == ["A", "B", UNDECIDED]
    assert undecided(table) == 1
    # Also when only one of them is left: an erasure of the other decided nothing.
    left = resolve_patients(table.slice(1), KEY)
    assert left["patient"].to_pylist() == [person("B"), person(tenant="T")]


def test_rows_without_an_id_stay_as_they_are():
    table = resolve_patients(scans(None, Stated("1001", None, None, None), None), KEY)
    assert table["patient"].to_pylist() == [None, person(), None]
    assert resolve_patients(scans(None, None), KEY) == scans(None, None)


def test_a_corpus_of_policy_1_has_the_pseudonyms_of_ids_as_patients():
    old = scans(None, None)
    old = old.set_column(
        old.schema.get_field_index("patient"), schemas.SCANS.field("patient"), pa.array(["1001", None])
    )
    assert with_bare_ids(old)["bare_id"].to_pylist() == ["1001", None]
    assert resolve_patients(with_bare_ids(old), KEY)["patient"].to_pylist() == [person(), None]


@given(st.lists(STATED, min_size=1, max_size=8), st.randoms())
def test_whose_scans_they_are_does_not_depend_on_the_order_and_stays(stated, rng):
    resolved = resolve(stated, KEY)
    shuffled = list(stated)
    rng.shuffle(shuffled)
    assert resolve(shuffled, KEY) == resolved
    table = resolve_patients(scans(*stated), KEY)
    assert table["patient"].to_pylist() == [resolved[one].patient for one in stated]
    assert resolve_patients(table, KEY) == table


@given(st.lists(STATED, min_size=1, max_size=8))
def test_an_issuer_and_a_tenant_are_never_mixed(stated):
    resolved = resolve(stated, KEY)
    for one in stated:
        if one.issuer is not None:
            assert resolved[one].patient == person(one.issuer, bare_id=one.bare_id)
        of_tenant = {
            resolved[other].patient for other in stated if (other.bare_id, other.tenant) == (one.bare_id, one.tenant)
        }
        assert resolved[one].patient in of_tenant | {person(None, one.tenant, one.site, one.bare_id)}


@pytest.mark.parametrize("ids", [("1001", "1002")])
def test_other_ids_say_nothing(ids):
    one, other = (Stated(ident, issuer, "T", None) for ident, issuer in zip(ids, (None, "A"), strict=True))
    assert resolve([one, other], KEY)[one].patient == person(tenant="T")
