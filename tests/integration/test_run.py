"""``mrcg run`` on Ray, from a messy folder to a release."""

import json
import re

import numpy as np
import pytest
from tests.factories import BAD_FILES, TWO_WORKERS, mrcg, tiny_config

from mrcg.corpus.reader import Corpus, read_quarantine, read_scans
from mrcg.encoder.appearance import facts_in
from mrcg.evaluation.known_items import FORMS
from mrcg.metrics.report import KNOWN, Report
from mrcg.stages.registry import pipeline_stages
from mrcg.storage import schemas
from mrcg.storage.store import Store

KINDS = [stage.kind for stage in pipeline_stages(tiny_config())]

pytestmark = pytest.mark.slow


def artefact(ray_run, kind):
    (version,) = ray_run.store.versions(kind)
    return ray_run.store.artefact(kind, version)


def test_every_stage_ran_and_left_one_version_and_a_release(ray_run):
    stages = ray_run.result["stages"]
    assert [stage["ran"] for stage in stages] == [True] * len(pipeline_stages(tiny_config()))
    assert [ray_run.store.versions(kind) for kind in KINDS] == [[stage["version"]] for stage in stages]
    assert ray_run.result["promotion"]["promoted"]
    assert ray_run.release.number == 1
    for kind in KINDS:
        assert ray_run.store.listdir(f"{kind}/_attempts") == []


def test_bad_files_are_in_quarantine_and_all_others_in_the_corpus(ray_run):
    corpus = artefact(ray_run, "corpus")
    rows = read_quarantine(corpus).to_pylist()
    assert {row["source_key"]: row["reason"] for row in rows} == BAD_FILES
    scans = read_scans(corpus)
    assert scans.schema == schemas.SCANS
    assert scans.num_rows == 97
    assert len(set(scans["image_id"].to_pylist())) == 97
    # The rare class' image is a copy of a glioma: one group, two images.
    rare = scans["label"].to_pylist().index("rare_tumor")
    assert scans["group_id"].to_pylist().count(scans["group_id"][rare].as_py()) >= 2
    assert corpus.manifest.counts.classes["rare_tumor"] == 1


def test_pixels_lie_in_the_order_of_the_scans(ray_run):
    corpus = Corpus(artefact(ray_run, "corpus"))
    assert len(corpus.artefact.names("images/")) > 1
    ids = corpus.scans["image_id"].to_pylist()
    read = [
        one
        for _, data in corpus.artefact.iter_files("images/")
        for one in schemas.from_parquet(data)["image_id"].to_pylist()
    ]
    assert read == ids


def test_the_report_has_all_orders_and_both_maps(ray_run):
    data = json.loads(artefact(ray_run, "reports").read_bytes("report.json"))
    assert data["protocol"] == "paper"
    for order in ("ann", "reranked", "served"):
        assert {"map", "map_full", "precision_at_5", "precision_at_10", "per_class"} <= set(data[order])
    report = Report.model_validate(data)
    assert report.queries == artefact(ray_run, "graphs").manifest.counts.test
    assert artefact(ray_run, "reports").read_bytes("retrieval.png").startswith(b"\x89PNG")
    assert b"| served |" in artefact(ray_run, "reports").read_bytes("tables.md")
    assert [epoch.epoch for epoch in report.encoder_training.epochs] == [0, 1]
    assert [epoch.epoch for epoch in report.reranker_training.epochs] == [0, 1]
    page = artefact(ray_run, "reports").read_bytes("report.html").decode()
    assert "glioma_tumor" in page
    assert not re.search(r"""(src|href)=(?!["']?(data:|#))""", page), "it has all it shows in itself"


def test_a_scan_finds_itself_and_the_served_order_keeps_what_both_orders_are_good_at(ray_run):
    report = Report.model_validate_json(artefact(ray_run, "reports").read_bytes("report.json"))
    known = report.known_items
    assert known.unchanged.served.first == 1.0
    assert known.changed.served.first >= 0.93 * known.changed.ann.first
    assert known.changed.ann.first >= 0.7
    gain, served = report.gain.map, report.served_gain.map
    assert served.mean >= (0.7 * gain.mean if gain.low > 0 else -0.001)
    assert report.served.precision_at_1 >= report.ann.precision_at_1 - 0.005
    rows = schemas.from_parquet(artefact(ray_run, "reports").read_bytes(KNOWN))
    assert rows.schema == schemas.KNOWN_ITEMS
    assert rows.num_rows == known.unchanged.items * len(FORMS)
    assert ray_run.release.order == report.order.order
    assert (ray_run.release.served_map, ray_run.release.known_first) == (report.served.map, known.changed.served.first)


def test_a_class_that_cannot_be_learned_is_said(ray_run):
    assert re.search(r"class rare_tumor has (1|no) scan in the training part", ray_run.stderr), ray_run.stderr


def test_a_release_has_the_calibration_of_its_report(ray_run):
    report = Report.model_validate_json(artefact(ray_run, "reports").read_bytes("report.json"))
    assert ray_run.release.calibration == report.calibration.served
    assert (ray_run.release.calibration is None) == (ray_run.release.probability_withheld is not None)


def test_embeddings_are_half_precision_with_ids(ray_run):
    embeddings = artefact(ray_run, "embeddings")
    tables = [schemas.from_ipc(data) for _, data in embeddings.iter_files("embeddings/")]
    facts = facts_in(embeddings.manifest)
    assert (facts.trained_dim, facts.dim > 16) == (16, True)
    assert all(table.schema == schemas.embeddings(facts.dim) for table in tables)
    assert np.isfinite(tables[0]["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)).all()


def test_the_index_has_two_shards_and_states_its_recall(ray_run):
    counts = artefact(ray_run, "indexes").manifest.counts
    assert counts.recall_at_50 == 1.0
    assert len(counts.shard_sizes) == 2
    assert sum(counts.shard_sizes) == 97


def test_a_second_run_skips_every_stage(ray_run):
    again = mrcg("run", "--source", str(ray_run.source), "--store", ray_run.store.url, *TWO_WORKERS, "--json")
    assert again.returncode == 0, again.stderr
    result = json.loads(again.stdout)
    assert [stage["ran"] for stage in result["stages"]] == [False] * len(pipeline_stages(tiny_config()))
    assert not result["promotion"]["promoted"]
    assert ray_run.release.number == 1


def test_a_stage_alone_names_the_stage_it_misses(ray_run, tmp_path):
    done = mrcg("embed", "--source", str(ray_run.source), "--store", str(tmp_path / "new"), *TWO_WORKERS)
    assert done.returncode == 1
    assert "embed needs corpus/" in done.stderr
    assert "run `mrcg ingest` with the same options first" in done.stderr


def test_a_source_without_one_usable_image(tmp_path):
    (tmp_path / "src" / "a").mkdir(parents=True)
    (tmp_path / "src" / "a" / "words.png").write_text("words")
    done = mrcg("run", "--source", str(tmp_path / "src"), "--store", str(tmp_path / "store"), *TWO_WORKERS)
    assert done.returncode == 1
    assert "none of its 1 files is a usable image (first: a/words.png, not_an_image)" in done.stderr
    assert Store(str(tmp_path / "store")).versions("corpus") == []
