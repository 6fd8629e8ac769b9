"""A folder of each format: its patients and folds, and (long) a release that a file of that format searches."""

import json
from functools import partial

import pytest
from tests import factories

from mrcg.api.requests import SearchParams
from mrcg.corpus.reader import Corpus
from mrcg.corpus.splits import Split
from mrcg.imaging.phantom import CLASSES
from mrcg.imaging.samples import SampleFormat, write_samples
from mrcg.metrics.report import REPORT, Report
from mrcg.privacy.pseudonyms import ENVIRONMENT, new_key
from mrcg.releases.release import read_release
from mrcg.retrieval.local import LocalPipeline
from mrcg.storage.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WORDS = ("--recipe", "demo", *(word for one in factories.OVERRIDES for word in ("--set", one)))
IMAGES = 80


def made(command, source, store, cluster, *given):
    words = (command, "--source", str(source), "--store", store.url, "--ray", cluster, *WORDS)
    return factories.mrcg(*words, *(word for one in given for word in ("--set", one)), "--json")


run = partial(made, "run")


def refused(done):
    assert done.returncode == 2
    assert "need a pseudonym key" in done.stderr
    return done.stderr


def promoted(done, store):
    """The report of the release that a run made."""
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["promotion"]["promoted"]
    release = read_release(store)
    return Report.model_validate_json(store.artefact("reports", release.report).read_bytes(REPORT))


def first_label(store, kind, folder):
    """The label of the first hit for a scan that is in no corpus."""
    write_samples(folder, 4, 2, kind)
    scan = next(path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "cvind.mat")
    answer = LocalPipeline.open(store).search(scan.read_bytes(), SearchParams(k=5))
    assert len(answer.hits) == 5
    return answer.hits[0].label


# Where a key is set, the classes of folders have to be named.
CLASSES_NAMED = (f"ingest.classes=[{','.join(CLASSES)}]", "split.protocol=dedup")


@pytest.fixture(scope="module")
def dicom_and_nifti(tmp_path_factory):
    source = tmp_path_factory.mktemp("dicom-nifti")
    for kind in (SampleFormat.dicom, SampleFormat.nifti):
        write_samples(source, IMAGES, 1, kind)
    return source


def test_a_folder_of_dicom_and_nifti_files_is_split_by_its_patients(dicom_and_nifti, cluster, tmp_path, monkeypatch):
    store = Store(str(tmp_path / "store"))
    # No name tells: the first file that is read does.
    assert "DICOM files" in refused(run(dicom_and_nifti, store, cluster, *CLASSES_NAMED))
    monkeypatch.setenv(ENVIRONMENT, new_key())
    for stage in ("ingest", "split"):
        done = made(stage, dicom_and_nifti, store, cluster, *CLASSES_NAMED)
        assert done.returncode == 0, done.stderr
    corpus = Corpus(store.artefact("corpus", *store.versions("corpus")))
    assert len(corpus) == 2 * IMAGES
    patients = corpus.scans["patient"].to_pylist()
    assert sum(patient is not None for patient in patients) == IMAGES, "the headers of DICOM files name patients"
    ids = corpus.scans["bare_id"].to_pylist()
    assert all(group == ident for group, ident in zip(corpus.groups, ids, strict=True) if ident)
    assert set(corpus.scans["plane"].to_pylist()) == {"axial"}
    assert set(corpus.scans["slice_number"].to_pylist()) == {0, 1, 2, 3}
    split = Split(store.artefact("splits", *store.versions("splits")))
    parts = dict(zip(patients, split.test.tolist(), strict=True))
    assert all(parts[one] == part for one, part in zip(patients, split.test.tolist(), strict=True) if one)


@pytest.mark.platform
def test_a_folder_of_dicom_and_nifti_files_reaches_a_release_that_answers(
    dicom_and_nifti, cluster, tmp_path, monkeypatch
):
    """Its short form is the test before; that a release of DICOM files answers is a part of ``test_erasure``."""
    store = Store(str(tmp_path / "store"))
    monkeypatch.setenv(ENVIRONMENT, new_key())
    report = promoted(run(dicom_and_nifti, store, cluster, *CLASSES_NAMED), store)
    assert report.graded_likeness is None, "folders and volumes do not state lesions"
    for kind in (SampleFormat.dicom, SampleFormat.nifti):
        assert first_label(store, kind, tmp_path / kind.value) in CLASSES


def test_volumes_without_names_need_no_key(cluster, tmp_path):
    source, store = tmp_path / "scans", Store(str(tmp_path / "store"))
    write_samples(source, 16, 1, SampleFormat.nifti)
    done = made("ingest", source, store, cluster)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stages"][0]["counts"]["images"] == 16


FOLDS = ("split.protocol=folds", "split.test_fold=1")


@pytest.fixture(scope="module")
def mat_files(tmp_path_factory):
    source = tmp_path_factory.mktemp("mat")
    write_samples(source, IMAGES, 1, SampleFormat.mat)
    return source


def test_a_folder_of_mat_files_is_split_by_its_folds(mat_files, cluster, tmp_path, monkeypatch):
    store = Store(str(tmp_path / "store"))
    refused(run(mat_files, store, cluster, *FOLDS))
    monkeypatch.setenv(ENVIRONMENT, new_key())
    for stage in ("ingest", "split"):
        done = made(stage, mat_files, store, cluster, *FOLDS)
        assert done.returncode == 0, done.stderr
    corpus = Corpus(store.artefact("corpus", *store.versions("corpus")))
    assert len(corpus) == IMAGES
    patients = corpus.scans["patient"].to_pylist()
    assert all(patients)
    assert corpus.groups == corpus.scans["bare_id"].to_pylist()
    split = Split(store.artefact("splits", *store.versions("splits")))
    assert [fold == 1 for fold in corpus.scans["fold"].to_pylist()] == split.test.tolist()


@pytest.mark.platform
def test_a_folder_of_mat_files_reaches_a_release_that_answers(mat_files, cluster, tmp_path, monkeypatch):
    store = Store(str(tmp_path / "store"))
    monkeypatch.setenv(ENVIRONMENT, new_key())
    report = promoted(run(mat_files, store, cluster, *FOLDS), store)
    # All three classes of these files have a mask.
    assert report.graded_likeness.queries == report.queries
    assert 0 < report.graded_likeness.served.mean <= 1
    assert first_label(store, SampleFormat.mat, tmp_path / "held-out") in {"glioma", "meningioma", "pituitary"}
