import datetime

import pyarrow as pa
import pytest
from tests import factories
from tests.unit.imaging.test_raster import encoded, slice_of

from mrcg.config.settings import IngestSettings
from mrcg.corpus.ingestion import HARMLESS_REASONS, ImagesWriter, ingest_files
from mrcg.corpus.sources import SourceFile
from mrcg.errors import UsageError
from mrcg.imaging.slices import Reading, ScanFacts, Slice, image_id, pixel_hash
from mrcg.privacy.identity import authority_of
from mrcg.privacy.pseudonyms import Pseudonyms
from mrcg.privacy.suppression import IMAGE, PATIENT, PIXELS, token
from mrcg.storage import schemas

NAMES = Pseudonyms(bytes(32))


def test_bad_files_are_quarantined_with_a_reason_and_good_ones_kept():
    contents = {
        "a/bomb.png": factories.bomb(20_000),
        "a/empty.png": b"",
        "a/good.png": encoded(slice_of()),
        "a/good2.png": encoded(slice_of(41)),
        "a/text.png": b"not pixels",
        "a/tiny.png": encoded(slice_of(1)),
        "a/truncated.jpg": encoded(slice_of(), "JPEG")[:-300],
    }

    def read(file):
        if file.key == "a/locked.png":
            raise PermissionError(13, "Permission denied")
        return contents[file.key]

    files = [SourceFile(key, "", 0, "a") for key in sorted([*contents, "a/locked.png"])]
    files += [SourceFile("a/gone.png", "missing", -1, "a"), SourceFile("a/huge.png", "", 2**40, "a")]
    out = factories.Files()
    segment = factories.ingest(files, read, factories.rules_of(), out)
    assert segment.scans["source_key"].to_pylist() == ["a/good.png", "a/good2.png"]
    (name,) = out.content
    images = schemas.from_parquet(out.content[name])
    assert images["image_id"].to_pylist() == segment.scans["image_id"].to_pylist()
    assert segment.scans["file"].to_pylist() == [name, name]
    assert segment.scans["file_row"].to_pylist() == [0, 1]
    assert {row["source_key"]: row["reason"] for row in segment.quarantine.to_pylist()} == {
        "a/bomb.png": "too_many_pixels",
        "a/empty.png": "empty",
        "a/gone.png": "missing",
        "a/huge.png": "too_many_bytes",
        "a/locked.png": "unreadable",
        "a/text.png": "not_an_image",
        "a/tiny.png": "too_small",
        "a/truncated.jpg": "truncated",
    }
    assert all(row["detail"] for row in segment.quarantine.to_pylist())


def test_pixel_files_roll_over_and_row_groups_are_small():
    settings = IngestSettings(file_bytes=2**16, images_per_row_group=4)
    files = [SourceFile(f"{n}.png", "", 0) for n in range(30)]
    contents = {file.key: encoded(slice_of(100 + n)) for n, file in enumerate(files)}
    out = factories.Files()
    segment = factories.ingest(files, lambda file: contents[file.key], factories.rules_of(settings), out)
    assert len(out.content) > 1
    assert [entry.name for entry in segment.files] == sorted(out.content)
    for entry in segment.files:
        data = out.content[entry.name]
        assert (entry.size, entry.sha256) == (len(data), factories.FileEntry.of("", data).sha256)
        parquet = pa.parquet.ParquetFile(pa.BufferReader(data))
        groups = [parquet.metadata.row_group(n).num_rows for n in range(parquet.num_row_groups)]
        assert all(rows == 4 for rows in groups[:-1])
        assert len(data) < 2 * settings.file_bytes
    for row in segment.scans.to_pylist():
        images = schemas.from_parquet(out.content[row["file"]])
        assert images["image_id"][row["file_row"]].as_py() == row["image_id"]


def test_a_pixel_file_is_not_published_after_an_error():
    out = factories.Files()

    def read(file):
        if file.key == "2":
            raise KeyboardInterrupt
        return encoded(slice_of())

    with (
        pytest.raises(KeyboardInterrupt),
        ImagesWriter(out.open, "x", IngestSettings(images_per_row_group=1)) as images,
    ):
        ingest_files(
            [SourceFile(str(n), "", 0) for n in range(4)], read, decoded(ScanFacts()), factories.rules_of(), images
        )
    assert out.content == {}


FACTS = ScanFacts(
    label=None, patient="DOE^JANE", study="1.2.3", series="1.2.3.4", instance="1.2.3.4.5", accession="A77", plane="axial",
    sequence="T2", acquired=datetime.date(2020, 3, 1), position=12.5, spacing=0.5,
)  # fmt: skip


def decoded(facts=FACTS):
    return lambda data: Reading([Slice(slice_of(), 3, facts)])


def one_row(file, rules, facts=FACTS):
    with ImagesWriter(factories.Files().open, "x", rules.settings) as images:
        segment = ingest_files([file], lambda _: b"bytes", decoded(facts), rules, images)
    return (segment.scans.to_pylist() or segment.quarantine.to_pylist())[0]


def test_identifiers_become_pseudonyms_and_facts_columns():
    row = one_row(SourceFile("JANE/1.dcm", "s", 0, "JANE"), factories.rules_of(pseudonyms=NAMES))
    assert row["patient"] == NAMES.person("", NAMES.name("patient", "DOE^JANE"))
    assert row["study"] == NAMES.name("study", "1.2.3")
    assert row["accession"] == NAMES.name("accession", "A77")
    assert row["series"] == NAMES.uid("series", "1.2.3.4")
    assert row["instance"].startswith("2.25.")
    assert row["source_key"] == NAMES.name("path", "JANE/1.dcm")
    assert row["image_id"] == image_id(row["source_key"], 3, pixel_hash(slice_of()))
    assert (row["year"], row["plane"], row["sequence"], row["spacing_mm"]) == (2020, "axial", "T2", 0.5)
    assert 0 < abs((row["acquired"] - datetime.date(2020, 3, 1)).days) <= 182
    assert row["label"] is None, "the folder may be named after a patient"
    assert "JANE" not in str(row)


def test_with_a_key_only_listed_folders_are_labels():
    rules = factories.rules_of(IngestSettings(classes=("glioma",)), NAMES)
    assert one_row(SourceFile("glioma/1", "s", 0, "glioma"), rules)["label"] == "glioma"
    assert one_row(SourceFile("JANE/1", "s", 0, "JANE"), rules)["label"] is None
    plain = ScanFacts()
    assert one_row(SourceFile("any/1", "s", 0, "any"), factories.rules_of(), plain)["label"] == "any"
    assert one_row(SourceFile("any/1", "s", 0, "any"), factories.rules_of(rules.settings), plain)["label"] is None


def test_the_manifest_takes_precedence_over_the_file():
    said = SourceFile(
        "1", "s", 0, label=None, labelled=True, patient="P1", site="north", plane="sagittal", sequence="T1",
        acquired="2021-05-06",
    )  # fmt: skip
    row = one_row(said, factories.rules_of(pseudonyms=NAMES), ScanFacts(label="glioma", patient="X", plane="axial"))
    assert (row["label"], row["site"], row["plane"], row["sequence"], row["year"]) == (
        None,
        "north",
        "sagittal",
        "T1",
        2021,
    )
    assert row["patient"] == NAMES.person(authority_of(None, None, "north"), NAMES.name("patient", "P1"))
    stated = SourceFile("1", "s", 0, label="folder")
    assert one_row(stated, factories.rules_of(), ScanFacts(label="glioma"))["label"] == "glioma"


def test_a_volume_takes_its_sequence_from_its_name():
    volume = ScanFacts(plane="axial", position=1.0)
    assert one_row(SourceFile("a/sub-01_T1w.nii.gz", "s", 0), factories.rules_of(), volume)["sequence"] == "T1"


def test_identifying_formats_need_a_key():
    data = b"\0" * 128 + b"DICM" + b"\0" * 100
    with pytest.raises(UsageError, match=r"DICOM files identify patients .*mrcg keys new --kind pseudonym"):
        factories.ingest([SourceFile("1", "s", 0)], lambda _: data, factories.rules_of())


@pytest.mark.parametrize("kind", [PATIENT, IMAGE, PIXELS])
def test_suppressed_scans_are_not_stored(kind):
    file, rules = SourceFile("1", "s", 0), factories.rules_of(pseudonyms=NAMES)
    row = one_row(file, rules)
    value = {PATIENT: row["patient"], IMAGE: row["image_id"], PIXELS: row["pixel_hash"]}[kind]
    out = factories.Files()
    listed = factories.rules_of(pseudonyms=NAMES, suppressed=[token(NAMES, kind, value)])
    with ImagesWriter(out.open, "x", listed.settings) as images:
        segment = ingest_files([file], lambda _: b"", decoded(), listed, images)
    assert segment.scans.num_rows == 0
    assert out.content == {}
    assert segment.quarantine["reason"].to_pylist() == ["suppressed"]
    other = factories.rules_of(pseudonyms=NAMES, suppressed=[token(None, kind, value)])
    assert one_row(file, other)["image_id"] == row["image_id"], "an entry made with another key matches nothing"


def litter(key, **settings):
    return factories.rules_of(IngestSettings(**settings)).litter(key)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("sub-01/anat/sub-01_T1w.json", "a file of type .json, left out by ingest.exclude"),
        ("README", "a file of another type, left out by ingest.exclude"),
        ("cd/AUTORUN.INF", "a file of type .inf, left out by ingest.exclude"),
        ("cd/viewer/Hospital_Logo.jpg", "a file of type .jpg, left out by ingest.exclude"),
        ("__MACOSX/a/1.png", "a file of type .png, left out by ingest.exclude"),
        ("sub-01/func/sub-01_task-rest_bold.nii.gz", "a file of type .gz, left out by ingest.exclude"),
        ("sub-01/anat/sub-01_T1w.nii.gz", None),
        ("glioma/1.png", None),
        ("IM0001", None),
        ("jsonian/1.dcm", None),
    ],
)
def test_what_lies_beside_scans_is_left_out_by_its_name(key, kind):
    assert litter(key) == kind
    assert litter(key, exclude=()) is None


@pytest.mark.parametrize(
    ("key", "included"),
    [("a/ANAT/1.png", True), ("a/func/1.png", False), ("2.dcm", True), ("b/2.DCM", True), ("1", False)],
)
def test_globs_say_which_files_are_scans(key, included):
    assert (litter(key, include=("*.dcm", "a/anat/*")) is None) is included


def test_what_is_left_out_is_counted_and_not_read():
    def read(file):
        raise AssertionError(file.key)

    segment = factories.ingest([SourceFile("a/notes.txt", "s", 5)], read, factories.rules_of())
    (row,) = segment.quarantine.to_pylist()
    assert (row["source_key"], row["reason"], row["detail"]) == (
        "a/notes.txt", "not_a_scan", "a file of type .txt, left out by ingest.exclude",
    )  # fmt: skip
    assert row["reason"] in HARMLESS_REASONS
    assert segment.files_read == 0
