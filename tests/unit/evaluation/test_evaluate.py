import json

import numpy as np
import pytest
from tests.factories import tiny_config
from tests.unit.evaluation.conftest import FACTS

from mrcg.corpus.reader import Corpus
from mrcg.evaluation.evaluate import evaluate
from mrcg.metrics.ranking import mean_average_precision
from mrcg.metrics.report import PAGE, PICTURE, QUERIES, REPORT, TABLES, Report
from mrcg.reranker.graph_table import read_graphs
from mrcg.storage import schemas

pytestmark = pytest.mark.slow


def settings(*more):
    return tiny_config("evaluate.bootstrap=200", "evaluate.map_images=40", *more).evaluate


def run_evaluate(inputs, encoder=False):
    artefacts = {kind: artefact for kind, artefact in inputs.items() if kind != "encoders"}
    return evaluate(artefacts, settings(), FACTS, inputs["encoders"] if encoder else None)


def test_report_has_all_files_and_figures(inputs):
    files = run_evaluate(inputs, encoder=True)
    assert set(files) == {REPORT, TABLES, PICTURE, PAGE, QUERIES}
    report = Report.model_validate_json(files[REPORT])
    test = read_graphs(inputs["graphs"], "test")
    assert report.queries == len(test)
    assert report.ann.map == pytest.approx(mean_average_precision(test.relevant_qn))
    each = schemas.from_parquet(files[QUERIES])
    assert each["image_id"].to_pylist() == Corpus(inputs["corpus"]).scans["image_id"].take(test.queries).to_pylist()
    assert np.mean(each["ann_map"]) == pytest.approx(report.ann.map)
    assert np.mean(each["reranked_precision_at_10"]) == pytest.approx(report.reranked.precision_at_10)
    assert report.gain.map.mean == pytest.approx(report.reranked.map - report.ann.map)
    assert sum(map(sum, report.confusion.ann)) == sum(map(sum, report.confusion.reranked)) == report.queries
    labels = Corpus(inputs["corpus"]).labels
    right = sum(labels[q] == labels[hit] for q, hit in zip(test.queries, test.neighbours_qn[:, 0], strict=True))
    place = report.confusion.found.index
    assert sum(row[place(c)] for c, row in zip(report.confusion.classes, report.confusion.ann, strict=True)) == right
    assert sum(score_bin.count for score_bin in report.calibration.raw.bins) == (test.neighbours_qn >= 0).sum()
    assert report.calibration.map.temperature > 1
    assert report.calibration.calibrated.expected_error < report.calibration.raw.expected_error
    validation = read_graphs(inputs["graphs"], "validation")
    assert report.ood_threshold == pytest.approx(np.quantile(validation.distances_qn[:, 0], 0.99))
    assert report.out_of_distribution.flagged == (test.distances_qn[:, 0] > report.ood_threshold).sum()
    assert (report.encoder_training.best_epoch, len(report.encoder_training.epochs)) == (4, 6)
    assert len(report.reranker_training.epochs) == 6
    assert report.leakage.patients_known == 0
    page = files[PAGE].decode()
    assert page.count("<img") == 7
    assert inputs["corpus"].manifest.version in page
    assert "https:" not in page


def test_equal_inputs_give_equal_files(inputs):
    assert run_evaluate(inputs) == run_evaluate(inputs)


def test_dedup_without_a_validation_part(dedup_inputs):
    files = run_evaluate(dedup_inputs)
    report = Report.model_validate_json(files[REPORT])
    assert (report.protocol, report.leaking_queries, report.masked_hits) == ("dedup", 0, 0)
    assert report.calibration.map is None
    assert report.calibration.calibrated is None
    assert report.ood_threshold is None
    assert report.out_of_distribution.flagged == 0
    assert report.encoder_training.epochs == ()
    assert "no query is flagged" in files[PAGE].decode()


def test_dedup_masks_hits_of_the_querys_own_patient(dedup_inputs, monkeypatch):
    """The first two hits of the first query get the patient of the query."""
    before = Report.model_validate_json(run_evaluate(dedup_inputs)[REPORT])
    test = read_graphs(dedup_inputs["graphs"], "test")
    own = [int(test.queries[0]), *test.neighbours_qn[0, :2].tolist()]

    def with_patient(artefact):
        scans = read_scans(artefact)
        names = ["p" if row in own else None for row in range(scans.num_rows)]
        return scans.set_column(scans.schema.get_field_index("patient"), "patient", [names])

    from mrcg.corpus import reader

    read_scans = reader.read_scans
    monkeypatch.setattr(reader, "read_scans", with_patient)
    after = Report.model_validate_json(run_evaluate(dedup_inputs)[REPORT])
    assert after.masked_hits == 2
    assert after.leakage.same_patient == 1
    assert sum(b.count for b in after.calibration.raw.bins) == sum(b.count for b in before.calibration.raw.bins) - 2
    assert json.loads(after.model_dump_json())["leakage"]["patients_known"] == 1
