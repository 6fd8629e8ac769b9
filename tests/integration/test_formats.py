"""``mrcg run`` on a folder of each format, to a release that a file of that format searches."""

import json

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
#: Settings that a user of each format gives: folders of classes are named where a key is set, .mat files bring folds.
GIVEN = {
    SampleFormat.dicom: ("--set", f"ingest.classes=[{','.join(CLASSES)}]", "--set", "split.protocol=dedup"),
    SampleFormat.nifti: ("--set", "split.protocol=dedup"),
    SampleFormat.mat: ("--set", "split.protocol=folds", "--set", "split.test_fold=1"),
}


@pytest.mark.parametrize("kind", list(GIVEN))
def test_a_folder_of_each_format_reaches_a_release_that_answers(kind, cluster, tmp_path, monkeypatch):
    source, store = tmp_path / "scans", Store(str(tmp_path / "store"))
    write_samples(source, 120, 1, kind)
    words = ("run", "--source", str(source), "--store", store.url, "--ray", cluster, *WORDS, *GIVEN[kind])
    if kind is not SampleFormat.nifti:
        refused = factories.mrcg(*words)
        assert refused.returncode == 2
        assert "need a pseudonym key" in refused.stderr
        if kind is SampleFormat.dicom:
            # No name tells: the first file that is read does.
            assert "DICOM files" in refused.stderr
        monkeypatch.setenv(ENVIRONMENT, new_key())
    done = factories.mrcg(*words, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["promotion"]["promoted"]
    corpus = Corpus(store.artefact("corpus", read_release(store).corpus))
    assert len(corpus) == 120
    patients = corpus.scans["patient"].to_pylist()
    if kind is not SampleFormat.nifti:
        assert all(patients)
        assert corpus.groups == patients
    if kind is SampleFormat.mat:
        (splits,) = store.versions("splits")
        split = Split(store.artefact("splits", splits))
        folds = corpus.scans["fold"].to_pylist()
        assert [fold == 1 for fold in folds] == split.test.tolist()
    (version,) = store.versions("reports")
    report = Report.model_validate_json(store.artefact("reports", version).read_bytes(REPORT))
    if kind is SampleFormat.mat:
        # All three classes of these files have a mask.
        assert report.graded_likeness.queries == report.queries
        assert 0 < report.graded_likeness.served.mean <= 1
    else:
        assert report.graded_likeness is None, "folders and volumes do not state lesions"
    if kind is not SampleFormat.mat:
        assert set(corpus.scans["plane"].to_pylist()) == {"axial"}
        assert set(corpus.scans["slice_number"].to_pylist()) == {0, 1, 2, 3}
    held_out = tmp_path / "held-out"
    write_samples(held_out, 4, 2, kind)
    scan = next(path for path in sorted(held_out.rglob("*")) if path.is_file() and path.name != "cvind.mat")
    answer = LocalPipeline.open(store).search(scan.read_bytes(), SearchParams(k=5))
    assert len(answer.hits) == 5
    assert answer.hits[0].label in {*CLASSES, "glioma", "meningioma", "pituitary"}
