"""Near-duplicates by difference hash: a FAISS binary index finds the pairs, SciPy joins them into groups.

See `docs/corpus.md#duplicates-and-groups`.
"""

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
#: Shorter keys (in bits) would put all hashes into few buckets, so that comparing all pairs is faster.
_MIN_KEY_BITS = 8


def difference_hash(grey: Grey) -> bytes:
    """Return 256 bits: whether each cell of a thumbnail (16 rows x 17 columns) is brighter than its left neighbour."""
    thumbnail = as_image(grey).resize((17, 16), Image.Resampling.BOX)
    levels = np.asarray(thumbnail, dtype=np.int16)
    return np.packbits(levels[:, 1:] > levels[:, :-1]).tobytes()


def near_pairs(hashes_nb: Hashes, max_bits: int) -> Pairs:
    """Return pairs (i, j), i < j, that connect all hashes within ``max_bits`` of each other: (pairs, 2).

    Exact copies are paired only with the first of them, so a scan that occurs a thousand times gives 999 pairs and not
    half a million. Among distinct hashes every near pair is found: ``max_bits`` flipped bits leave at least one of
    ``max_bits + 1`` disjoint keys unchanged, so both hashes share a bucket.

    Args:
        hashes_nb: (n, 32) bytes.
        max_bits: largest Hamming distance of two near hashes.
    """
    values = np.ascontiguousarray(hashes_nb).view(f"V{HASH_BYTES}").reshape(-1)
    _, first, value_of = np.unique(values, return_index=True, return_inverse=True)
    rows = np.arange(len(values), dtype=np.int64)
    copies = np.stack([first[value_of], rows], axis=1)[first[value_of] != rows]
    pairs = first[_distinct_pairs(np.ascontiguousarray(hashes_nb[first]), max_bits)] if max_bits else copies[:0]
    return np.sort(np.concatenate([copies, pairs]), axis=1)


def _distinct_pairs(hashes_nb: Hashes, max_bits: int) -> Pairs:
    faiss = require("faiss")
    key_bits = HASH_BITS // (max_bits + 1)
    if key_bits < _MIN_KEY_BITS:
        index = faiss.IndexBinaryFlat(HASH_BITS)
    else:
        # Keys are consecutive bits. Neighbouring bits are correlated (the background around a head is the same in all
        # scans), so the bits are permuted first; distances do not change.
        hashes_nb = _permute_bits(hashes_nb)
        index = faiss.IndexBinaryMultiHash(HASH_BITS, max_bits + 1, min(key_bits, 32))
    index.add(hashes_nb)
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for start in range(0, len(hashes_nb), _BLOCK):
        # FAISS returns distances strictly below the radius.
        limits, _, near = index.range_search(hashes_nb[start : start + _BLOCK], max_bits + 1)
        queries = np.repeat(np.arange(start, start + len(limits) - 1), np.diff(limits.astype(np.int64)))
        keep = queries < near
        pairs.append(np.stack([queries[keep], near[keep]], axis=1))
    return np.concatenate(pairs)


def _permute_bits(hashes_nb: Hashes) -> Hashes:
    order = np.random.default_rng(256).permutation(HASH_BITS)
    return np.packbits(np.unpackbits(hashes_nb, axis=1)[:, order], axis=1)


def join_groups(count: int, pairs: Pairs) -> npt.NDArray[np.int64]:
    """Return the connected components: for each member the smallest member of its group, shape (count,).

    Raises:
        MissingExtraError: SciPy is not installed.
    """
    sparse, csgraph = require("scipy.sparse"), require("scipy.sparse.csgraph")
    joined = sparse.coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, component = csgraph.connected_components(joined, directed=False)
    _, smallest = np.unique(component, return_index=True)
    members: npt.NDArray[np.int64] = smallest[component].astype(np.int64)
    return members
