import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mrcg.imaging import duplicates
from mrcg.imaging.duplicates import difference_hash, group_ids, join_groups, near_pairs
from mrcg.imaging.phantom import draw_slice

hashes = st.lists(
    st.integers(0, 255).map(lambda low: bytes([low]) + bytes(31)) | st.binary(min_size=32, max_size=32), max_size=20
)


def bits_apart(a, b):
    return bin(int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).count("1")


@given(hashes, st.integers(0, 20))
def test_pairs_equal_the_naive_ones(values, max_bits):
    naive = {
        (i, j)
        for i in range(len(values))
        for j in range(i + 1, len(values))
        if bits_apart(values[i], values[j]) <= max_bits
    }
    assert {tuple(pair) for pair in near_pairs(values, max_bits).tolist()} == naive


def test_pairs_reach_over_blocks(monkeypatch):
    monkeypatch.setattr(duplicates, "_BLOCK", 3)
    values = [bytes([n % 4]) + bytes(31) for n in range(10)]
    assert len(near_pairs(values, 0)) == sum(1 for i in range(10) for j in range(i + 1, 10) if i % 4 == j % 4)


@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))))
    )
)
def test_groups_equal_repeated_joining(case):
    count, pairs = case
    naive = list(range(count))
    for _ in range(count):
        for i, j in pairs:
            low = min(naive[i], naive[j])
            naive = [low if g in (naive[i], naive[j]) else g for g in naive]
    assert join_groups(count, np.array(pairs, dtype=np.int64).reshape(-1, 2)).tolist() == naive


@given(st.permutations(range(6)))
def test_group_names_do_not_depend_on_the_order(order):
    ids = [f"id{n}" for n in range(6)]
    values = [bytes([n // 2 * 255]) * 32 if n < 4 else bytes([17 * n]) * 32 for n in range(6)]
    straight = dict(zip(ids, group_ids(ids, values, 2), strict=True))
    shuffled = [ids[n] for n in order]
    assert dict(zip(shuffled, group_ids(shuffled, [values[n] for n in order], 2), strict=True)) == straight


def test_a_slightly_changed_scan_is_near_and_another_is_far():
    scan, other = draw_slice("glioma_tumor", 1, 0, 0), draw_slice("no_tumor", 1, 5, 0)
    brighter = np.clip(scan.astype(int) + 9, 0, 255).astype(np.uint8)
    assert bits_apart(difference_hash(scan), difference_hash(brighter)) <= 40
    assert bits_apart(difference_hash(scan), difference_hash(scan)) == 0
    assert bits_apart(difference_hash(scan), difference_hash(other)) > 40
