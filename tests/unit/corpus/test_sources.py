import dataclasses
import hashlib
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io

from mrcg.corpus.sources import files_in_listing, lesion_columns, listing_table, open_source, survey
from mrcg.errors import SourceError
from mrcg.imaging.lesion import Lesion
from mrcg.storage import schemas


def folder(tmp_path, *keys):
    for key in keys:
        path = tmp_path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(key.encode())
    return str(tmp_path)


def walked(where):
    return list(open_source(where).walk())


def test_folders_give_label_and_split(tmp_path):
    where = folder(tmp_path, "Training/a/1.png", "Testing/b/c/2.png", "d/3.png", "4.png", ".hidden/a/5.png", "d/.6.png")
    files = walked(where)
    assert [(f.key, f.label, f.split) for f in files] == [
        ("4.png", None, None),
        ("Testing/b/c/2.png", "b", "Testing"),
        ("Training/a/1.png", "a", "Training"),
        ("d/3.png", "d", None),
    ]
    assert files[0].fold is None
    assert open_source(where).read(files[-1]) == b"d/3.png"


def test_the_walk_is_ordered_by_key(tmp_path):
    keys = ["a.png", "a/1", "a/b/2", "a-b/3", "b", "A/z", "a/b.x", "ab/1"]
    where = folder(tmp_path, *keys)
    assert [file.key for file in walked(where)] == sorted(keys)
    import fsspec

    memory = fsspec.filesystem("memory")
    for key in keys:
        memory.pipe_file(f"/walked/{key}", b"x")
    assert [file.key for file in walked("memory://walked")] == sorted(keys)
    memory.rm("/walked", recursive=True)


def test_links_are_followed_without_cycles_and_what_cannot_be_read_has_an_entry(tmp_path):
    where = folder(tmp_path / "src", "a/1.png")
    folder(tmp_path / "elsewhere", "2.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "src" / "b")
    os.symlink(tmp_path / "src", tmp_path / "src" / "a" / "up")
    os.symlink(tmp_path / "nowhere", tmp_path / "src" / "c.png")
    os.mkfifo(tmp_path / "src" / "pipe.png")
    assert [(file.key, file.size >= 0) for file in walked(where)] == [
        ("a/1.png", True), ("b/2.png", True), ("c.png", False), ("pipe.png", False),
    ]  # fmt: skip
    assert [file.stamp for file in walked(where)][2:] == ["missing", "not_a_file"]


def test_the_digest_changes_with_the_files(tmp_path):
    where = folder(tmp_path, "a/1.png", "a/2.png")
    before = survey(open_source(where))
    assert survey(open_source(where)) == before
    assert (before.files, before.size, before.identifying) == (2, 14, False)
    (tmp_path / "a/2.png").write_bytes(b"other bytes")
    changed = survey(open_source(where)).listing_digest
    folder(tmp_path, "a/3.dcm")
    third = survey(open_source(where))
    assert len({before.listing_digest, changed, third.listing_digest}) == 3
    assert third.identifying


def test_no_such_source(tmp_path):
    with pytest.raises(SourceError, match="nowhere: no such folder or manifest"):
        open_source(str(tmp_path / "nowhere"))


def test_empty_source(tmp_path):
    with pytest.raises(SourceError, match="has no files; expected SRC/<class>/<image> or a manifest"):
        survey(open_source(str(tmp_path)))


def test_fold_folders_give_folds_and_validation_folders_give_the_split(tmp_path):
    files = walked(folder(tmp_path, "fold2/a/1.png", "Fold_10/b/2.png", "val/a/3.png", "foldings/4.png"))
    assert [(f.label, f.split, f.fold) for f in files] == [
        ("b", None, 10), ("a", None, 2), ("foldings", None, None), ("a", "val", None),
    ]  # fmt: skip


def test_cvind_gives_the_folds_of_numbered_files(tmp_path):
    where = folder(tmp_path, "1.mat", "2.mat", "other.mat")
    scipy.io.savemat(tmp_path / "cvind.mat", {"cvind": np.array([[3], [5]])})
    assert [(file.key, file.fold) for file in walked(where)] == [("1.mat", 3), ("2.mat", 5), ("other.mat", None)]
    (tmp_path / "cvind.mat").write_bytes(b"MATLAB 5.0 MAT-file, but damaged")
    with pytest.raises(SourceError, match="cvind.mat"):
        walked(where)


def manifest(tmp_path, text, name="scans.csv"):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return str(tmp_path / name)


def test_a_manifest_gives_the_metadata_of_files(tmp_path):
    folder(tmp_path / "x", "1.png")
    where = manifest(
        tmp_path,
        "path,label,patient,site,plane,sequence,acquired,fold,split,comment\n"
        f"x/1.png,glioma,P 1,north,axial,T2,2021-02-03,4,train,ignored\n{tmp_path}/x/1.png,,,,,,,,,\nx/gone.png,,,,,,,,,\n",
    )
    one, two, gone = walked(where)
    assert (one.key, one.label, one.patient, one.site, one.plane, one.sequence, one.acquired, one.fold, one.split) == (
        "x/1.png", "glioma", "P 1", "north", "axial", "T2", "2021-02-03", 4, "train",
    )  # fmt: skip
    assert (two.label, two.patient, two.labelled, two.size) == (None, None, True, one.size)
    assert gone.size == -1
    assert open_source(where).read(two) == b"1.png"
    assert survey(open_source(where)).identifying
    assert files_in_listing(listing_table([one, two])) == [one, two]


def test_a_manifest_gives_lesions(tmp_path):
    folder(tmp_path, "1.png", "2.png")
    columns = "path,lesion_y,lesion_x,lesion_area,lesion_contrast\n"
    one, two = walked(manifest(tmp_path, columns + "1.png,0.25,0.5,0.125,-0.5\n2.png,,,,\n"))
    assert (one.lesion, two.lesion) == (Lesion(0.25, 0.5, 0.125, -0.5), None)
    assert files_in_listing(listing_table([one, two])) == [one, two]
    # A listing of an earlier version has no such columns.
    assert files_in_listing(listing_table([two]).drop(list(schemas.LESION))) == [two]
    (some,) = walked(manifest(tmp_path, "path,lesion_area\n1.png,0.125\n"))
    assert some.lesion == Lesion(area=0.125)


def test_columns_of_lesions_are_named_by_their_facts():
    names = [f"lesion_{field.name}" for field in dataclasses.fields(Lesion)]
    assert list(schemas.LESION) == names
    assert list(lesion_columns(Lesion(*range(4))).items()) == list(zip(names, range(4), strict=True))


def test_the_digest_covers_lesions_and_is_as_before_without_them(tmp_path):
    folder(tmp_path, "1.png")
    digests = [
        survey(open_source(manifest(tmp_path, text))).listing_digest
        for text in (
            "path,lesion_y\n1.png,0.25\n",
            "path,lesion_y\n1.png,0.5\n",
            "path,lesion_y\n1.png,\n",
            "path\n1.png\n",
        )
    ]
    assert len(set(digests[:3])) == 3
    assert digests[2] == digests[3]
    (file,) = walked(manifest(tmp_path, "path\n1.png\n"))
    assert digests[3] == hashlib.blake2b(repr(file).encode(), digest_size=16).hexdigest()
    assert "lesion" not in repr(file)


def test_a_manifest_in_a_folder_is_no_scan_of_it(tmp_path):
    where = folder(tmp_path, "a/1.png", "a/manifest.csv", "manifest.csv")
    assert [file.key for file in walked(where)] == ["a/1.png", "a/manifest.csv"]


def test_a_manifest_may_be_parquet(tmp_path):
    folder(tmp_path, "1.png")
    pq.write_table(pa.table({"path": ["1.png"], "fold": [2], "label": ["a"]}), tmp_path / "m.parquet")
    (one,) = walked(str(tmp_path / "m.parquet"))
    assert (one.label, one.fold, one.patient) == ("a", 2, None)
    assert not survey(open_source(str(tmp_path / "m.parquet"))).identifying


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\n1.png,a\n", "has no column path; a manifest needs path and any of label, patient"),
        ("path,fold\n1.png,first\n", "row 1: fold is not a whole number of at most 6 digits"),
        ("path,acquired\n1.png,3.2.2021\n", "row 1: acquired is not a day like"),
        ("path,plane\n1.png,front\n", "row 1: plane is not one of sagittal, coronal, axial"),
        ("path,label\n1.png,a\n ,b\n", "row 2 has no path"),
        ("path,lesion_y\n1.png,0.5\n1.png,12\n", "row 2: lesion_y is not a number between 0 and 1"),
        ("path,lesion_area\n1.png,0\n", "row 1: lesion_area is not above 0; leave the columns of the lesion empty"),
        ("path,lesion_area\n1.png,large\n", "row 1: lesion_area is not a number between 0 and 1"),
        ("path,lesion_contrast\n1.png,nan\n", "row 1: lesion_contrast is not a number between -1 and 1"),
    ],
)
def test_errors_of_a_manifest_name_row_and_column(tmp_path, text, message):
    folder(tmp_path, "1.png")
    with pytest.raises(SourceError, match=message):
        walked(manifest(tmp_path, text))
