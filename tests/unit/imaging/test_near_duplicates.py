import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mrcg.imaging import near_duplicates
from mrcg.imaging.near_duplicates import difference_hash, join_groups, near_pairs
from mrcg.imaging.phantom import draw_slice

hashes = st.lists(
    st.integers(0, 255).map(lambda low: bytes([low]) + bytes(31)) | st.binary(min_size=32, max_size=32), max_size=20
)


def bits_apart(a, b):
    return bin(int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).count("1")


def matrix(values):
    return np.frombuffer(b"".join(values), dtype=np.uint8).reshape(-1, 32)


def components(values, max_bits):
    near = [
        (i, j)
        for i in range(len(values))
        for j in range(i + 1, len(values))
        if bits_apart(values[i], values[j]) <= max_bits
    ]
    return join_groups(len(values), np.array(near, dtype=np.int64).reshape(-1, 2)).tolist()


@given(hashes, st.sampled_from([0, 1, 5, 12, 20, 40]))
def test_groups_equal_those_of_all_pairs(values, max_bits):
    pairs = near_pairs(matrix(values), max_bits)
    assert all(bits_apart(values[i], values[j]) <= max_bits and i < j for i, j in pairs.tolist())
    assert join_groups(len(values), pairs).tolist() == components(values, max_bits)


@given(st.binary(min_size=32, max_size=32), st.sets(st.integers(0, 255), min_size=12, max_size=12))
def test_any_twelve_flipped_bits_are_still_found(value, flipped):
    bits = np.unpackbits(np.frombuffer(value, np.uint8))
    bits[list(flipped)] ^= 1
    assert near_pairs(matrix([value, np.packbits(bits).tobytes()]), 12).tolist() == [[0, 1]]
    bits[next(n for n in range(256) if n not in flipped)] ^= 1
    assert near_pairs(matrix([value, np.packbits(bits).tobytes()]), 12).tolist() == []


def test_pairs_are_found_across_blocks(monkeypatch):
    monkeypatch.setattr(near_duplicates, "_BLOCK", 3)
    values = [bytes([n]) + bytes(31) for n in range(16)]
    assert len(near_pairs(matrix(values), 12)) == 16 * 15 / 2


def test_copies_are_paired_with_the_first_only():
    values = [bytes(32)] * 500
    assert near_pairs(matrix(values), 12).tolist() == [[0, n] for n in range(1, 500)]


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


def test_a_slightly_changed_scan_is_near_and_another_is_far():
    scan, other = draw_slice("glioma_tumor", 1, 0, 0)[0], draw_slice("no_tumor", 1, 5, 0)[0]
    brighter = np.clip(scan.astype(int) + 9, 0, 255).astype(np.uint8)
    assert bits_apart(difference_hash(scan), difference_hash(brighter)) <= 40
    assert bits_apart(difference_hash(scan), difference_hash(scan)) == 0
    assert bits_apart(difference_hash(scan), difference_hash(other)) > 40
