import csv
import io
import itertools

import numpy as np
import pydicom
import pytest

from mrcg.config.settings import ReadSettings
from mrcg.errors import UsageError
from mrcg.imaging.lesion import measure_lesion
from mrcg.imaging.matlab import LABELS, read_folds
from mrcg.imaging.phantom import phantoms
from mrcg.imaging.readers import format_of, read
from mrcg.imaging.samples import SPACING_MM, SampleFormat, write_manifest, write_samples
from mrcg.imaging.slices import stretch

IMAGES, SEED = 38, 3
SETTINGS = ReadSettings(volume_slices=0)
TUMOURS = tuple(f"{name}_tumor" for name in LABELS.values())
FORMATS = list(SampleFormat)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Samples of all formats, each in a folder named after its format."""
    made = tmp_path_factory.mktemp("samples")
    for kind in FORMATS:
        files, written = write_samples(made / kind, IMAGES, SEED, kind)
        assert files == written == len(content(made / kind))
    return made


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def patients(*classes):
    """Return the phantoms of each patient, in the order of the files."""
    of = phantoms(IMAGES, SEED, classes) if classes else phantoms(IMAGES, SEED)
    return [list(group) for _, group in itertools.groupby(of, key=lambda one: (one.label, one.patient))]


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_files_for_the_same_arguments(folder, tmp_path, kind):
    write_samples(tmp_path / "again", IMAGES, SEED, kind)
    assert content(tmp_path / "again") == content(folder / kind)
    write_samples(tmp_path / "other", IMAGES, SEED + 1, kind)
    other = content(tmp_path / "other")
    pixels = [name for name in other if name != "cvind.mat"]
    assert other.keys() == content(folder / kind).keys()
    assert not any(other[name] == content(folder / kind)[name] for name in pixels[:3])


@pytest.mark.parametrize("kind", FORMATS)
def test_only_changed_files_are_written(tmp_path, kind):
    files, _ = write_samples(tmp_path, 8, SEED, kind)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert write_samples(tmp_path, 8, SEED, kind) == (files, 0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    changed, removed = [path for path in sorted(before) if path.is_file() and path.name != "cvind.mat"][:2]
    right = changed.read_bytes()
    changed.write_bytes(b"cut")
    removed.unlink()
    assert write_samples(tmp_path, 8, SEED, kind) == (files, 2)
    assert changed.read_bytes() == right


def test_png_holds_the_phantom(folder):
    for one in itertools.chain(*patients()):
        data = (folder / "png" / one.label / f"patient-{one.patient:04d}-slice-{one.slice_number}.png").read_bytes()
        assert format_of(data) == "raster"
        (found,) = read(data, SETTINGS).slices
        assert (found.pixels == one.pixels).all()


def test_dicom_holds_the_phantom_and_invented_headers(folder):
    names, series, instances, syntaxes = [], [], [], set()
    for patient in patients():
        facts = []
        for one in patient:
            path = folder / "dicom" / one.label / f"P{one.patient:04d}" / "S1" / f"IM{one.slice_number:04d}"
            data = path.read_bytes()
            assert format_of(data) == "dicom"
            (found,) = read(data, SETTINGS).slices
            assert np.abs(found.pixels.astype(int) - one.pixels).max() <= 1
            facts.append(found.facts)
            dataset = pydicom.dcmread(io.BytesIO(data))
            syntaxes.add(dataset.file_meta.TransferSyntaxUID)
            instances.append(dataset.SOPInstanceUID)
            assert str(dataset.PatientName).startswith("Phantom^")
        for keep in ("patient", "study", "series", "accession", "acquired", "sequence", "plane", "spacing"):
            (value,) = {getattr(one, keep) for one in facts}
            assert value is not None
        assert (facts[0].plane, facts[0].spacing) == ("axial", SPACING_MM)
        assert [one.position for one in facts] == sorted({one.position for one in facts})
        names.append(facts[0].patient)
        series.append(facts[0].series)
    assert len(set(names)) == len(set(series)) == len(names)
    assert len(set(instances)) == len(instances) == IMAGES
    assert len(syntaxes) == 2, "compressed and not"


def test_nifti_holds_the_patient(folder):
    for patient in patients():
        path = folder / "nifti" / patient[0].label / f"sub-{patient[0].patient:04d}_T1w.nii.gz"
        assert format_of(path.read_bytes()) == "nifti"
        slices = read(path.read_bytes(), SETTINGS).slices
        expected = stretch(np.stack([one.pixels for one in patient]).astype(np.float32))
        assert (np.stack([one.pixels for one in slices]) == expected).all()
        assert {(one.facts.plane, one.facts.patient) for one in slices} == {("axial", None)}
        assert slices[0].facts.spacing == pytest.approx(SPACING_MM)


def test_mat_holds_the_phantom_and_folds_never_split_a_patient(folder):
    folds = read_folds((folder / "mat" / "cvind.mat").read_bytes())
    number, names, together = 0, [], []
    for patient in patients(*TUMOURS):
        inside = set()
        for one in patient:
            number += 1
            data = (folder / "mat" / f"{number}.mat").read_bytes()
            assert format_of(data) == "matlab"
            (found,) = read(data, SETTINGS).slices
            assert (found.pixels == stretch(one.pixels.astype(np.float32))).all()
            assert f"{found.facts.label}_tumor" == one.label
            inside.add((found.facts.patient, folds[number - 1]))
        ((name, fold),) = inside
        names.append(name)
        together.append(fold)
    assert number == len(folds) == IMAGES
    assert len(set(names)) == len(names)
    assert set(together) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("kind", [SampleFormat.png, SampleFormat.dicom])
def test_the_manifest_names_each_file_with_its_lesion(folder, tmp_path, kind):
    path = write_manifest(tmp_path, "scans.csv", IMAGES, SEED, kind)
    assert path == tmp_path / "scans.csv"
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert {row["path"] for row in rows} == set(content(folder / kind))
    for row, one in zip(rows, phantoms(IMAGES, SEED), strict=True):
        (found,) = read((folder / kind / row["path"]).read_bytes(), SETTINGS).slices
        assert (row["label"], row["plane"]) == (one.label, "axial")
        stated = [float(row[f"lesion_{name}"] or "nan") for name in ("y", "x", "area", "contrast")]
        lesion = measure_lesion(found.pixels, one.lesion)
        measured = [np.nan] * 4 if lesion is None else [lesion.y, lesion.x, lesion.area, lesion.contrast]
        assert stated[:3] == pytest.approx(measured[:3], abs=1e-4, nan_ok=True)
        # Grey levels of DICOM files pass through a window.
        assert stated[3] == pytest.approx(measured[3], abs=0.01, nan_ok=True)


@pytest.mark.parametrize("kind", [SampleFormat.nifti, SampleFormat.mat])
def test_other_formats_have_no_manifest(tmp_path, kind):
    assert write_manifest(tmp_path, "scans.csv", IMAGES, SEED, kind) is None
    assert not content(tmp_path)


@pytest.mark.parametrize("kind", FORMATS)
def test_an_unwritable_folder_is_reported(tmp_path, kind):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file cannot be written: "):
        write_samples(tmp_path / "file", 4, SEED, kind)
