"""Near-duplicates by difference hash, joined into groups (DESIGN §2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from mrcg.imaging.decode import Grey

HASH_BYTES = 32
_BLOCK = 1024


def difference_hash(grey: Grey) -> bytes:
    """256 bits: is each cell of a 16 x 17 thumbnail brighter than its left neighbour."""
    thumbnail = Image.fromarray(grey).resize((17, 16), Image.Resampling.BOX)
    levels = np.asarray(thumbnail, dtype=np.int16)
    return np.packbits(levels[:, 1:] > levels[:, :-1]).tobytes()


def near_pairs(hashes: Sequence[bytes], max_bits: int) -> npt.NDArray[np.int64]:
    """All pairs (i, j), i < j, whose hashes differ in at most ``max_bits`` bits: (pairs, 2).

    Compares all pairs block by block: seconds for 10^4 images, memory of one block.
    """
    words = np.frombuffer(b"".join(hashes), dtype=np.uint64).reshape(len(hashes), HASH_BYTES // 8)
    found = [np.empty((0, 2), dtype=np.int64)]
    for start in range(0, len(words), _BLOCK):
        block = words[start : start + _BLOCK]
        others = words[start:]
        bits = np.bitwise_count(block[:, None, :] ^ others[None, :, :]).sum(axis=2, dtype=np.uint16)
        i, j = np.nonzero(bits <= max_bits)
        keep = i < j
        found.append(np.stack([i[keep] + start, j[keep] + start], axis=1))
    return np.concatenate(found)


def join_groups(count: int, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Connected components: for each member the smallest member of its group, shape (count,)."""
    parent = list(range(count))

    def root(member: int) -> int:
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    for i, j in pairs.tolist():
        a, b = root(i), root(j)
        parent[max(a, b)] = min(a, b)
    return np.array([root(member) for member in range(count)], dtype=np.int64)


def group_ids(image_ids: Sequence[str], hashes: Sequence[bytes], max_bits: int) -> list[str]:
    """Group of each image: named after the smallest image id in it, whatever the order of the input."""
    roots = join_groups(len(image_ids), near_pairs(hashes, max_bits))
    smallest: dict[int, str] = {}
    for member, group in zip(image_ids, roots.tolist(), strict=True):
        smallest[group] = min(member, smallest.get(group, member))
    return [smallest[group] for group in roots.tolist()]
