"""Near-duplicates by difference hash: pairs from a FAISS binary index, joined by union-find (DESIGN §2)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from mrcg.errors import require
from mrcg.imaging.slices import Grey, as_image

HASH_BITS = 256
HASH_BYTES = HASH_BITS // 8
Hashes = npt.NDArray[np.uint8]
Pairs = npt.NDArray[np.int64]
_BLOCK = 8192
#: Tables with shorter keys than this would hold everything in few buckets: comparing all is then quicker.
_SHORTEST_KEY = 8


def difference_hash(grey: Grey) -> bytes:
    """256 bits: is each cell of a 16 x 17 thumbnail brighter than its left neighbour."""
    thumbnail = as_image(grey).resize((17, 16), Image.Resampling.BOX)
    levels = np.asarray(thumbnail, dtype=np.int16)
    return np.packbits(levels[:, 1:] > levels[:, :-1]).tobytes()


def near_pairs(hashes_nb: Hashes, max_bits: int) -> Pairs:
    """Pairs (i, j), i < j, that join all hashes within ``max_bits`` of each other: (pairs, 2).

    Copies are joined to the first of them only, so a scan that is there a thousand times gives a thousand
    pairs and not half a million. Of the distinct hashes every near pair is found: ``max_bits`` flipped
    bits leave at least one of ``max_bits + 1`` disjoint keys untouched, so that both share a bucket.

    Args:
        hashes_nb: (n, 32) bytes.
        max_bits: Hamming distance up to which two are near.
    """
    whole = np.ascontiguousarray(hashes_nb).view(f"V{HASH_BYTES}").reshape(-1)
    _, first, member_of = np.unique(whole, return_index=True, return_inverse=True)
    own = np.arange(len(whole), dtype=np.int64)
    copies = np.stack([first[member_of], own], axis=1)[first[member_of] != own]
    pairs = first[_distinct_pairs(np.ascontiguousarray(hashes_nb[first]), max_bits)] if max_bits else copies[:0]
    return np.sort(np.concatenate([copies, pairs]), axis=1)


def _distinct_pairs(hashes_nb: Hashes, max_bits: int) -> Pairs:
    faiss = require("faiss")
    key_bits = HASH_BITS // (max_bits + 1)
    if key_bits < _SHORTEST_KEY:
        index = faiss.IndexBinaryFlat(HASH_BITS)
    else:
        # Keys are consecutive bits. Neighbouring bits are alike (the background around a head is the same in all
        # scans), so they are dealt out anew; distances stay what they are.
        hashes_nb = _dealt(hashes_nb)
        index = faiss.IndexBinaryMultiHash(HASH_BITS, max_bits + 1, min(key_bits, 32))
    index.add(hashes_nb)
    found = [np.empty((0, 2), dtype=np.int64)]
    for start in range(0, len(hashes_nb), _BLOCK):
        # FAISS counts as near what is below the radius.
        limits, _, near = index.range_search(hashes_nb[start : start + _BLOCK], max_bits + 1)
        queries = np.repeat(np.arange(start, start + len(limits) - 1), np.diff(limits.astype(np.int64)))
        keep = queries < near
        found.append(np.stack([queries[keep], near[keep]], axis=1))
    return np.concatenate(found)


def _dealt(hashes_nb: Hashes) -> Hashes:
    order = np.random.default_rng(256).permutation(HASH_BITS)
    return np.packbits(np.unpackbits(hashes_nb, axis=1)[:, order], axis=1)


def join_groups(count: int, pairs: Pairs) -> npt.NDArray[np.int64]:
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
