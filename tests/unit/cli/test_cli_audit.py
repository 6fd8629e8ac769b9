"""``mrcg audit labels`` where every step is done already, so that neither Ray nor a training is needed."""

import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from tests.factories import OVERRIDES, embeddings_by_file, publish, publish_corpus, tiny_config
from tests.unit.cli.test_main import run

from mrcg.corpus.reader import Corpus
from mrcg.corpus.sources import open_source
from mrcg.corpus.splits import SPLITS, make_splits
from mrcg.imaging.samples import write_samples
from mrcg.metrics.report import QUERIES
from mrcg.storage import schemas
from mrcg.storage.store import Store
from mrcg_jobs.label_audit import LabelAuditor
from mrcg_jobs.runner import plan_steps

TRAINED, APPEARANCE = 8, 4
SETTINGS = [word for override in OVERRIDES for word in ("--set", override)]


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """240 phantoms, nine of them in the folder of another class; embeddings are noise around the true class."""
    folder = tmp_path_factory.mktemp("audit")
    source, store, config = folder / "scans", Store(str(folder / "store")), tiny_config()
    write_samples(source, 240, seed=1)
    flipped = {}
    for number, path in enumerate(sorted(source.glob("*/*.png"))[5::27]):
        wrong = sorted(child for child in source.iterdir() if child != path.parent)[number % 3]
        moved = path.rename(wrong / f"moved-{number}.png")
        flipped[moved.relative_to(source).as_posix()] = path.parent.name
    auditor = LabelAuditor.of(store, config, str(source), 2)
    steps = {step.name: step for step in auditor.steps}
    corpus = Corpus(store.artefact("corpus", publish_corpus(store, steps["ingest"], source, config).version))
    splits = schemas.to_parquet(make_splits(corpus.scans, config.split, config.seed))
    publish(store, steps["split"], {SPLITS: splits}, {"protocol": "paper"})
    keys = corpus.scans["source_key"].to_pylist()
    true = np.array(
        [corpus.classes.index(flipped.get(key, label)) for key, label in zip(keys, corpus.labels, strict=True)]
    )
    draws = np.random.default_rng(1)
    for step in auditor.steps:
        if step.stage.kind == "encoders":
            publish(store, step, {}, {"epochs": 0})
        if step.stage.kind == "embeddings":
            centres = 4 * draws.normal(size=(len(corpus.classes), TRAINED))
            trained = centres[true] + draws.normal(size=(len(true), TRAINED))
            # The appearance part is louder than the trained part and knows no classes.
            vectors = np.hstack([trained, 50 * draws.normal(size=(len(true), APPEARANCE))]).astype(np.float16)
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
            table = pa.table({"image_id": corpus.scans["image_id"], "embedding": column}, schema=schemas.embeddings(12))
            counts = {"fingerprint": "ab", "encoder": "cd", "dim": TRAINED + APPEARANCE, "trained_dim": TRAINED}
            publish(store, step, embeddings_by_file(corpus, table), counts)
    words = ["audit", "labels", "--source", source, "--store", store.url, "--recipe", "demo", *SETTINGS]
    return SimpleNamespace(source=source, store=store, flipped=flipped, auditor=auditor, words=words, corpus=corpus)


def test_steps_are_those_of_cross_fitting(audited):
    names = [step.name for step in audited.auditor.steps]
    assert names == [
        "ingest", "split", "train-encoder", "embed",
        "train-encoder fold 1/2", "embed fold 1/2", "train-encoder fold 2/2", "embed fold 2/2",
    ]  # fmt: skip
    crossed = tiny_config("reranker.graphs=cross_fit", "reranker.folds=2")
    _, steps = plan_steps(audited.store, crossed, str(audited.source))
    versions = {step.name: step.version for step in steps}
    assert all(versions[step.name] == step.version for step in audited.auditor.steps)
    _, plain = plan_steps(audited.store, tiny_config(), str(audited.source))
    assert (audited.auditor.report, plain[-1].stage.kind) == (plain[-1].version, "reports")


def test_flipped_labels_are_listed_worst_first(capsys, audited):
    code, out, _ = run(capsys, *audited.words, "--top", 12, "--json")
    result = json.loads(out)
    assert (code, result["scans"], result["corpus"]) == (0, 240, audited.corpus.artefact.manifest.version)
    assert result["figures"] is None
    assert len(result["rows"]) == 12
    first = result["rows"][: len(audited.flipped)]
    assert {row["source_key"]: row["suggested"] for row in first} == audited.flipped
    assert result["flagged"] >= 0.8 * len(audited.flipped)
    assert all(row["label"] == row["source_key"].split("/")[0] for row in result["rows"])
    assert [row["probability"] for row in result["rows"]] == sorted(row["probability"] for row in result["rows"])


def test_table_page_and_manifest(capsys, audited, tmp_path):
    page, manifest = tmp_path / "page.html", tmp_path / "labels.csv"
    code, out, err = run(capsys, *audited.words, "--top", 3, "--out", page, "--manifest", manifest)
    assert code == 0
    words = " ".join(out.split())
    assert "of 240 scans flagged; nothing was relabelled" in words
    assert "no report of these settings in the store: `mrcg run` makes one" in words
    assert "audit …" in err
    assert page.read_text().count("<img") == 3 * 6
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 240
    flagged = [row["flagged"] == "yes" for row in rows]
    assert sorted(flagged, reverse=True) == flagged, "flagged rows come first"
    assert all(row["path"].endswith(tuple(audited.flipped)) for row in rows if row["flagged"] == "yes")
    files = list(open_source(str(manifest)).walk())
    assert all(file.label == file.key.split("/")[-2] and file.size > 0 for file in files)
    code, _, err = run(capsys, *audited.words, "--manifest", manifest)
    assert (code, "already exists and may hold corrections: choose another file" in " ".join(err.split())) == (2, True)


def test_figures_of_the_report(capsys, audited, tmp_path, monkeypatch):
    """A report in which flagged queries fail: without them the figure is an upper bound."""
    _, steps = plan_steps(audited.store, tiny_config(), str(audited.source))
    corpus, split = audited.corpus, schemas.from_parquet(
        audited.store.artefact("splits", audited.auditor.steps[1].version).read_bytes(SPLITS)
    )  # fmt: skip
    rows = np.flatnonzero(np.array(split["split"].to_pylist()) == "test")
    keys = corpus.scans["source_key"].take(rows).to_pylist()
    maps = [0.0 if key in audited.flipped else 0.9 for key in keys]
    columns = {name: corpus.scans[name].take(rows) for name in ("image_id", "group_id", "label")}
    figures = {name: maps for name in schemas.QUERIES.names if name not in columns}
    table = pa.table({**columns, **figures}, schema=schemas.QUERIES)
    store = Store(str(shutil.copytree(audited.store.root, tmp_path / "store")))  # the others have no report
    publish(store, steps[-1], {QUERIES: schemas.to_parquet(table)})
    words = [store.url if word == audited.store.url else word for word in audited.words]
    code, out, _ = run(capsys, *words, "--json")
    shown = json.loads(out)["figures"]
    assert (code, shown["report"]) == (0, steps[-1].version)
    count, wrong = len(rows), sum(key in audited.flipped for key in keys)
    assert wrong > 0
    assert shown["all_queries"]["queries"] == count
    assert shown["all_queries"]["map"] == pytest.approx(0.9 * (count - wrong) / count)
    left_out = count - shown["without_flagged"]["queries"]
    assert 0 < left_out <= wrong
    assert shown["without_matched"]["queries"] == count - left_out
    # A flipped query that is not flagged may be matched, so the third figure can be above the first.
    assert shown["without_flagged"]["map"] > max(shown["all_queries"]["map"], shown["without_matched"]["map"])
    page = tmp_path / "page.html"
    code, out, _ = run(capsys, *words, "--out", page)
    assert (code, "without the flagged ones (upper bound)" in out) == (0, True)
    assert "is an upper bound" in page.read_text()


SOURCE = "tests"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--folds", "1"], "--folds"),
        (["--top", "0"], "--top"),
        (["--set", "encoder.epoch=1"], "unknown key encoder.epoch"),
        (["--manifest", "nowhere/labels.csv"], "--manifest nowhere/labels.csv: there is no such folder"),
        (["--manifest", f"{SOURCE}/labels.csv"], "is inside --source"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_are_refused_before_any_work(capsys, words, line):
    code, _, err = run(capsys, "audit", "labels", "--source", SOURCE, "--store", "s", *words)
    assert (code, line in " ".join(err.split())) == (2, True)
