import pytest

from mrcg.errors import SourceError
from mrcg.source import list_source, read_file


def folder(tmp_path, *keys):
    for key in keys:
        path = tmp_path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(key.encode())
    return str(tmp_path)


def test_folders_give_label_and_split(tmp_path):
    where = folder(tmp_path, "Training/a/1.png", "Testing/b/c/2.png", "d/3.png", "4.png", ".hidden/a/5.png", "d/.6.png")
    _, files = list_source(where)
    assert [(f.key, f.label, f.split) for f in files] == [
        ("4.png", None, None),
        ("Testing/b/c/2.png", "b", "Testing"),
        ("Training/a/1.png", "a", "Training"),
        ("d/3.png", "d", None),
    ]
    assert files[0].fold is None
    assert read_file(where, "d/3.png") == b"d/3.png"


def test_the_digest_follows_the_files(tmp_path):
    where = folder(tmp_path, "a/1.png", "a/2.png")
    before = list_source(where)[0].listing_digest
    assert list_source(where)[0].listing_digest == before
    (tmp_path / "a/2.png").write_bytes(b"other bytes")
    changed = list_source(where)[0].listing_digest
    folder(tmp_path, "a/3.png")
    assert len({before, changed, list_source(where)[0].listing_digest}) == 3


def test_no_such_source(tmp_path):
    with pytest.raises(SourceError, match="nowhere: no such folder"):
        list_source(str(tmp_path / "nowhere"))


def test_empty_source(tmp_path):
    with pytest.raises(SourceError, match="holds no files; expected SRC/<class>/<image>"):
        list_source(str(tmp_path))


def test_folders_of_folds_and_of_a_validation_part(tmp_path):
    where = folder(tmp_path, "fold2/a/1.png", "Fold_10/b/2.png", "val/a/3.png", "foldings/4.png")
    _, files = list_source(where)
    assert [(f.label, f.split, f.fold) for f in files] == [
        ("b", None, 10), ("a", None, 2), ("foldings", None, None), ("a", "val", None),
    ]  # fmt: skip
