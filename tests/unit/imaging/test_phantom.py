import numpy as np

from mrcg.imaging.phantom import CLASSES, SIDE, draw_slice, phantoms
from mrcg.imaging.samples import write_samples


def test_equal_seeds_give_equal_phantoms_and_others_do_not():
    one, two, other = (list(phantoms(12, seed)) for seed in (1, 1, 2))
    assert all((a.pixels == b.pixels).all() for a, b in zip(one, two, strict=True))
    assert not any((a.pixels == b.pixels).all() for a, b in zip(one, other, strict=True))


def test_classes_patients_and_slices():
    made = list(phantoms(40, 1))
    assert {p.label for p in made} == set(CLASSES)
    assert [sum(p.label == c for p in made) for c in CLASSES] == [10, 10, 10, 10]
    assert {(p.patient, p.slice_number) for p in made if p.label == "no_tumor"} == {divmod(n, 4) for n in range(10)}
    assert all(p.pixels.shape == (SIDE, SIDE) for p in made)


def test_slices_of_a_patient_are_alike_but_not_equal():
    a, b, stranger = (draw_slice("no_tumor", 1, *which)[0].astype(int) for which in ((0, 0), (0, 1), (1, 0)))
    assert 0 < np.abs(a - b).mean() < np.abs(a - stranger).mean()


def test_existing_samples_are_not_written_again(tmp_path):
    assert write_samples(tmp_path, 8, 1) == (8, 8)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert write_samples(tmp_path, 8, 1) == (8, 0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == times
