"""A manifest with the labels of a corpus is a source: what a person corrects in it is ingested."""

import csv

import numpy as np
import pytest
from PIL import Image
from tests.factories import publish_corpus, tiny_config

from mrcg.config.settings import IngestSettings
from mrcg.corpus.corrections import LabelNote, check_target, labels_manifest
from mrcg.corpus.ingestion import Rules
from mrcg.corpus.reader import Corpus
from mrcg.corpus.sources import open_source, survey
from mrcg.errors import UsageError
from mrcg.pipeline.plan import plan
from mrcg.privacy.pseudonyms import Pseudonyms


def write_scans(folder):
    """Eight scans, one of them below a fold, and a file that is no scan."""
    draws = np.random.default_rng(1)
    for number in range(8):
        path = folder / ("fold1/glioma" if number == 0 else "glioma" if number % 2 else "no tumour, clear")
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (40, 40), dtype=np.uint8)).save(path / f"scan-{number}.png")
    (folder / "glioma" / "text.png").write_text("these are words")


def ingested(store, location, pseudonyms=None, *more):
    config = tiny_config(*more)
    step = plan(config, survey(open_source(str(location))), "none")[0]
    return Corpus(store.artefact("corpus", publish_corpus(store, step, location, config, pseudonyms).version))


def by_name(corpus):
    """Label and image id by file name."""
    rows = corpus.scans.select(["source_key", "label", "image_id", "fold"]).to_pylist()
    return {row["source_key"].rsplit("/", 1)[-1]: row for row in rows}


def rules_of(pseudonyms=None, **settings):
    return Rules(IngestSettings(**settings), pseudonyms, frozenset(), 0)


def corrected(data, name, label):
    """The table with another label for one file, as a person would write it."""
    rows = list(csv.DictReader(data.decode().splitlines()))
    for row in rows:
        if row["path"].endswith(name):
            row["label"] = label
    return rows


def write(path, rows):
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)


@pytest.mark.parametrize("beside", [True, False])
def test_corrections_of_a_folder_are_ingested(store, tmp_path, beside):
    source = tmp_path / "scans"
    write_scans(source)
    before = ingested(store, source)
    target = source / ".labels.csv" if beside else tmp_path / "labels.csv"
    notes = {"glioma/scan-3.png": LabelNote(True, "no tumour, clear", 0.1), "glioma/scan-1.png": LabelNote(False, "glioma", 0.6)}  # fmt: skip
    data = labels_manifest(open_source(str(source)), target, before.scans, notes, rules_of())
    rows = corrected(data, "scan-3.png", "no tumour, clear")
    assert len(rows) == 9, "the file that is no scan is listed, too"
    assert rows[0]["path"].endswith("scan-3.png")
    assert (rows[0]["flagged"], rows[0]["suggested"], rows[0]["probability"]) == ("yes", "no tumour, clear", "0.100")
    write(target, rows)
    after = ingested(store, target)
    labels = {name: row["label"] for name, row in by_name(before).items()}
    assert {name: row["label"] for name, row in by_name(after).items()} == labels | {"scan-3.png": "no tumour, clear"}
    assert by_name(after)["scan-0.png"]["fold"] == 1
    same_ids = all(row["image_id"] == by_name(before)[name]["image_id"] for name, row in by_name(after).items())
    assert same_ids is beside, "ids are made of the paths"
    assert survey(open_source(str(source))).files == 9, "a hidden manifest is no file of the source"


def test_a_manifest_of_a_manifest_keeps_its_columns(store, tmp_path):
    write_scans(tmp_path)
    rows = [
        {"path": "glioma/scan-1.png", "label": "a", "site": "north", "acquired": "2020-01-31", "split": "train"},
        {"path": str(tmp_path / "glioma" / "scan-3.png"), "label": "", "site": "", "acquired": "", "split": "test"},
        {"path": "glioma/scan-99.png", "label": "b", "site": "", "acquired": "", "split": "test"},
    ]
    write(tmp_path / "list.csv", rows)
    source, corpus = open_source(str(tmp_path / "list.csv")), ingested(store, tmp_path / "list.csv")
    beside = labels_manifest(source, tmp_path / "other.csv", corpus.scans, {}, rules_of())
    empty = {"flagged": "", "suggested": "", "probability": ""}
    assert list(csv.DictReader(beside.decode().splitlines())) == [row | empty for row in rows]
    (tmp_path / "elsewhere").mkdir()
    elsewhere = labels_manifest(source, tmp_path / "elsewhere" / "other.csv", corpus.scans, {}, rules_of())
    paths = [row["path"] for row in csv.DictReader(elsewhere.decode().splitlines())]
    assert paths == [str(tmp_path / "glioma" / f"scan-{number}.png") for number in (1, 3, 99)]


def test_with_a_key_rows_are_found_and_folders_stay_no_labels(store, tmp_path):
    source, pseudonyms = tmp_path / "scans", Pseudonyms(bytes(32))
    write_scans(source)
    corpus = ingested(store, source, pseudonyms, "ingest.classes=[glioma]")
    rules = rules_of(pseudonyms, classes=("glioma",))
    notes = {pseudonyms.name("path", "glioma/scan-5.png"): LabelNote(True, "other", 0.2)}
    data = labels_manifest(open_source(str(source)), tmp_path / "labels.csv", corpus.scans, notes, rules)
    rows = list(csv.DictReader(data.decode().splitlines()))
    assert rows[0]["path"].endswith("glioma/scan-5.png")
    assert {row["label"] for row in rows} == {"glioma", ""}
    assert all((row["label"] == "glioma") == ("glioma/" in row["path"]) for row in rows)


def test_a_manifest_is_a_new_file_that_is_not_ingested(tmp_path):
    source = tmp_path / "scans"
    write_scans(source)
    folder = open_source(str(source))
    check_target(folder, source / ".labels.csv")
    check_target(folder, tmp_path / "labels.csv")
    check_target(folder, source / "glioma" / ".." / ".labels.csv")
    check_target(folder, source / "manifest.csv")
    (tmp_path / "old.csv").write_text("corrections")
    for target, message in (
        (source / "labels.csv", r"would be ingested: name it manifest.csv .* begins with a dot \(.labels.csv\)"),
        (source / "glioma" / "manifest.csv", "would be ingested"),
        (tmp_path / "elsewhere" / ".." / "scans" / "labels.csv", "would be ingested"),
        (tmp_path / "old.csv", "already exists and may hold corrections: choose another file"),
        (tmp_path / "labels.txt", "the name of a manifest must end in .csv"),
        (tmp_path / "nowhere" / "labels.csv", "there is no such folder; create it"),
    ):
        with pytest.raises(UsageError, match=message):
            check_target(folder, target)
