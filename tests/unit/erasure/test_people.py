"""One id that several hospitals gave: whom an erasure means, whom it takes, and who stays out afterwards."""

import pydicom
import pytest
from tests import erasure_factories
from tests.erasure_factories import KEY, eraser, made_corpus, write_patients
from tests.galleries import published

from mrcg.corpus.reader import read_scans
from mrcg.erasure.people import AskedPatient, describe_similar, find_patient, people_with
from mrcg.erasure.records import check_receipt
from mrcg.errors import AmbiguousError, NotFoundError, UsageError
from mrcg.pipeline.rebuild import migrate_corpus
from mrcg.privacy.suppression import suppressed
from mrcg.storage import schemas
from mrcg.storage.store import Store

ID = "1001"
CONFIG = erasure_factories.config_of_patients()
A, B = AskedPatient(patient=ID, issuer="HOSPITAL_A"), AskedPatient(patient=ID, issuer="HOSPITAL_B")


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_patients(folder, 32)
    return folder


@pytest.fixture
def source(phantoms, tmp_path):
    """A source to which scans of the patient with the one id can be added; others are in it."""
    return Source(tmp_path / "source", sorted(phantoms.rglob("IM*")))


class Source:
    """Four scans of each of some people."""

    def __init__(self, folder, files):
        self.folder = folder
        self._files = files

    def add(self, patient, issuer=None, entity=None):
        """Four more scans, which state this of their patient."""
        for _ in range(4):
            path = self._files.pop()
            dataset = pydicom.dcmread(path)
            dataset.PatientID = patient
            if issuer is not None:
                dataset.IssuerOfPatientID = issuer
            if entity is not None:
                qualifiers = pydicom.Dataset()
                qualifiers.UniversalEntityID, qualifiers.UniversalEntityIDType = entity, "ISO"
                dataset.IssuerOfPatientIDQualifiersSequence = [qualifiers]
            target = self.folder / "glioma_tumor" / f"{len(self._files):03d}.dcm"
            target.parent.mkdir(parents=True, exist_ok=True)
            dataset.save_as(target)

    def store(self, *settings):
        store = Store(str(self.folder.parent / "store"))
        made_corpus(store, self.folder, erasure_factories.config_of_patients(*settings))
        return store


def corpus_of(store, version=None):
    return read_scans(store.artefact("corpus", version or store.versions("corpus")[0])).to_pylist()


def issuers_of(store):
    return sorted("none" if row["issuer"] is None else KEY.revealed(row["issuer"]) for row in corpus_of(store))


def as_policy_1(store):
    """The corpus of a store as the version before wrote it: patients are ids."""
    (version,) = store.versions("corpus")
    manifest, scans = store.manifest("corpus", version), read_scans(store.artefact("corpus", version))
    scans = scans.set_column(scans.schema.get_field_index("patient"), "patient", scans["bare_id"])
    older = Store(f"{store.root}-of-policy-1")
    counts = {name: count for name, count in manifest.counts.stated().items() if name != "files"}
    settings = {**manifest.settings, "policy": {**manifest.settings["policy"], "version": 1}}
    files = {entry.name: store.artefact("corpus", version).read_bytes(entry.name) for entry in manifest.files}
    files["scans/00000.parquet"] = schemas.to_parquet(scans.drop_columns(["bare_id", "issuer"]))
    published(older, "corpus", settings, {}, files, **counts)
    return older


def test_one_id_of_two_issuers_is_of_two_people_in_one_group(source):
    source.add(ID, "HOSPITAL_A")
    source.add(ID, "HOSPITAL_B")
    store = source.store()
    rows = corpus_of(store)
    assert len({row["patient"] for row in rows}) == 2
    assert {row["group_id"] for row in rows} == {KEY.name("patient", ID)}


def test_whose_id_it_is_has_to_be_said_and_only_that_person_is_erased(source):
    source.add(ID, "HOSPITAL_A")
    source.add(ID, "HOSPITAL_B")
    source.add("another")
    store = source.store()
    with pytest.raises(AmbiguousError, match=r"several people .*nothing was erased; .* --issuer") as raised:
        find_patient(store, AskedPatient(patient=ID), KEY)
    assert "issuer HOSPITAL_A: 4 scans" in str(raised.value)
    assert "issuer HOSPITAL_B: 4 scans" in str(raised.value)
    assert not suppressed(store)
    signed = eraser(store).erase(find_patient(store, A, KEY))
    assert signed.receipt.scans == 4
    assert issuers_of(store) == ["HOSPITAL_B"] * 4 + ["none"] * 4
    assert check_receipt(store, signed, None, suppressed(store)).holds
    # What only one has now was of several: without a word whose, an erasure still takes none.
    with pytest.raises(AmbiguousError, match="HOSPITAL_B: 4 scans"):
        find_patient(store, AskedPatient(patient=ID), KEY)
    assert eraser(store).erase(find_patient(store, A, KEY)) == signed


def test_whoever_was_erased_stays_out_and_whoever_shares_the_id_comes_in(source):
    source.add(ID, "HOSPITAL_A")
    source.add("another")
    store = source.store()
    eraser(store).erase(find_patient(store, AskedPatient(patient=ID), KEY))
    source.add(ID, "HOSPITAL_A")
    source.add(ID)
    source.add(ID, "HOSPITAL_B")
    newest = made_corpus(store, source.folder, CONFIG, KEY, suppressed(store))["corpus"].version
    stated = {
        (row["patient"], row["issuer"]) for row in corpus_of(store, newest) if row["bare_id"] == KEY.name("patient", ID)
    }
    hospital_b = KEY.hidden("HOSPITAL_B")
    assert stated == {(KEY.person(f"issuer\x1f{hospital_b}", KEY.name("patient", ID)), hospital_b)}


def test_scans_without_issuer_go_with_the_one_person_who_has_the_id(source):
    source.add(ID, "HOSPITAL_A")
    source.add(ID)
    store = source.store()
    assert len({row["patient"] for row in corpus_of(store)}) == 1
    assert eraser(store).erase(find_patient(store, AskedPatient(patient=ID), KEY)).receipt.scans == 8


def test_scans_without_issuer_of_one_of_two_people_are_asked_for_by_name(source):
    source.add(ID, "HOSPITAL_A")
    source.add(ID, "HOSPITAL_B", entity="1.2.3")
    source.add(ID)
    store = source.store("ingest.site=north")
    assert store.manifest("corpus", store.versions("corpus")[0]).counts.undecided == 4
    with pytest.raises(AmbiguousError) as raised:
        find_patient(store, AskedPatient(patient=ID), KEY)
    assert "no issuer, site north: 4 scans" in str(raised.value)
    assert "issuer HOSPITAL_B&1.2.3&ISO, site north: 4 scans" in str(raised.value)
    with pytest.raises(AmbiguousError):
        find_patient(store, AskedPatient(patient=ID, site="north"), KEY)
    assert eraser(store).erase(find_patient(store, AskedPatient(patient=ID, issuer=""), KEY)).receipt.scans == 4
    assert issuers_of(store) == ["HOSPITAL_A"] * 4 + ["HOSPITAL_B&1.2.3&ISO"] * 4
    asked = AskedPatient(patient=f" {ID}.0", issuer="HOSPITAL_B&1.2.3&ISO")
    assert eraser(store).erase(find_patient(store, asked, KEY)).receipt.scans == 4


def test_who_is_asked_for_under_a_wrong_name_is_not_erased_and_the_right_ones_are_told(source):
    source.add(ID, "HOSPITAL_A")
    store = source.store()
    asked = AskedPatient(patient=ID, issuer="HOSPITAL_C")
    with pytest.raises(NotFoundError, match="nothing was erased"):
        eraser(store).erase(find_patient(store, asked, KEY))
    assert describe_similar(store, asked, KEY) == [f"{ID} (issuer HOSPITAL_A: 4 scans)"]
    assert describe_similar(store, AskedPatient(patient=f"0{ID}"), KEY) == [f"{ID} (4 scans)"]
    assert not suppressed(store)


def test_a_corpus_of_policy_1_knows_people_as_far_as_its_sites_tell(source):
    source.add(ID)
    source.add("another")
    older = as_policy_1(source.store("ingest.site=north"))
    assert [len(person.images) for person in people_with(older, ID, KEY)] == [4]
    signed = eraser(older).erase(find_patient(older, AskedPatient(patient=ID, site="north"), KEY))
    assert signed.receipt.scans == 4
    assert len(corpus_of(older)) == 4
    assert check_receipt(older, signed, None, suppressed(older)).holds


def test_a_corpus_of_policy_1_can_be_migrated_without_its_source(source):
    source.add(ID)
    source.add("another")
    older = as_policy_1(source.store("ingest.site=north"))
    base = older.manifest("corpus", older.versions("corpus")[0])
    with pytest.raises(UsageError, match="another pseudonym key"):
        migrate_corpus(older, base, None)
    made = migrate_corpus(older, base, KEY)
    before, after = corpus_of(older, base.version), corpus_of(older, made.version)
    assert {row["patient"] for row in before} == {KEY.name("patient", ID), KEY.name("patient", "another")}
    assert {row["patient"] for row in after} == {
        KEY.person("site\x1fnorth", KEY.name("patient", one)) for one in (ID, "another")
    }
    told = ("patient", "bare_id")
    assert [{**row, **dict.fromkeys(told)} for row in after] == [{**row, **dict.fromkeys(told)} for row in before]
    with pytest.raises(NotFoundError, match="already"):
        migrate_corpus(older, made, KEY)
    # What an ingestion of the same source would extend, and what an erasure takes from both.
    assert made.counts.source == base.counts.source
    assert eraser(older).erase(find_patient(older, AskedPatient(patient=ID), KEY)).receipt.scans == 4
    assert {
        row["bare_id"] or row["patient"] for version in older.versions("corpus") for row in corpus_of(older, version)
    } == {KEY.name("patient", "another")}
