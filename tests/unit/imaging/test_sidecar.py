"""What a JSON file beside a volume says of it."""

import datetime
import json

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import factories

from mrcg.corpus.sources import open_source
from mrcg.imaging.sidecar import read_sidecar, sidecar_key
from mrcg.imaging.slices import ScanFacts


def facts(**content):
    return read_sidecar(json.dumps(content).encode())


@pytest.mark.parametrize(
    ("content", "sequence"),
    [
        ({"SeriesDescription": "t2_tse_tra"}, "T2"),
        ({"ProtocolName": "MPRAGE"}, "T1"),
        ({"SeriesDescription": "t1_mprage", "ContrastBolusIngredient": "GADOLINIUM"}, "T1c"),
        ({"SeriesDescription": "t2_flair", "ContrastBolusIngredient": "GADOLINIUM"}, "FLAIR"),
        ({"RepetitionTime": 0.5, "EchoTime": 0.012}, "T1"),
        ({"RepetitionTime": 9, "EchoTime": 0.1, "InversionTime": 2.5}, "FLAIR"),
        ({"RepetitionTime": True, "EchoTime": "0.012"}, None),
        ({"SeriesDescription": None, "ProtocolName": 7}, None),
    ],
)
def test_the_sequence_is_that_of_the_header(content, sequence):
    assert facts(**content).sequence == sequence


def test_the_day_is_that_of_the_acquisition():
    day = datetime.date(2021, 5, 6)
    assert facts(AcquisitionDateTime="2021-05-06T10:11:12.5", StudyDate="20200101").acquired == day
    assert facts(AcquisitionDateTime="", StudyDate="20210506").acquired == day
    assert facts(AcquisitionDateTime="0054-05-06").acquired is None
    assert facts(AcquisitionTime="10:11:12").acquired is None


def test_nobody_who_is_named_in_it_is_read():
    assert facts(PatientName="DOE^JANE", PatientID="1001", PatientBirthDate="1970-01-01") == ScanFacts()


@given(st.binary() | st.recursive(st.none() | st.text() | st.floats(), st.lists).map(lambda v: json.dumps(v).encode()))
def test_what_is_no_sidecar_says_nothing(data):
    assert read_sidecar(data) == ScanFacts()


def test_its_name_is_that_of_the_volume():
    assert sidecar_key("sub-01/anat/sub-01_T1w.nii.gz") == "sub-01/anat/sub-01_T1w.json"
    assert sidecar_key("a.b.NII") == "a.b.json"
    assert sidecar_key("a.png") is None


def test_a_volume_has_what_its_sidecar_says_and_a_large_file_is_none(tmp_path):
    rng = np.random.default_rng(1)
    for name in ("one", "two", "sub-01_T2w"):
        volume = nibabel.Nifti1Image(rng.integers(0, 900, (32, 30, 8)).astype(np.int16), np.diag([1, 1, 5, 1.0]))
        nibabel.save(volume, tmp_path / f"{name}.nii.gz")
    said = json.dumps({"SeriesDescription": "t1_se", "AcquisitionDateTime": "2021-05-06T10:00:00"})
    (tmp_path / "one.json").write_text(said)
    (tmp_path / "two.json").write_text(said + " " * 2**20)
    source = open_source(str(tmp_path))
    segment = factories.ingest(list(source.walk()), source.read, factories.rules_of(), read_beside=source.read_beside)
    told = {(row["source_key"], row["sequence"], row["year"]) for row in segment.scans.to_pylist()}
    assert told == {("one.nii.gz", "T1", 2021), ("two.nii.gz", None, None), ("sub-01_T2w.nii.gz", "T2", None)}
