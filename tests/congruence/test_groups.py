"""One scan of each group, whatever is filtered and buried: as if every allowed scan had been looked at."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.factories import index_of
from tests.references import exact_distances

from mrcg.index import faiss_backend
from mrcg.index.group_search import groups_from_codes, search_groups

#: Cells or breadth that leaves nothing out.
ALL = 10**6


@pytest.fixture(autouse=True)
def _one_thread():
    faiss_backend.use_threads(1)


def by_hand(queries, vectors, groups, allowed, k):
    """Rows and distances of each query: all allowed scans sorted, ties by row, the first of each group."""
    kept, found = np.flatnonzero(allowed), []
    for query in queries:
        each = exact_distances(query[None], vectors[kept][None])[0]
        first = {}
        for place in np.lexsort((kept, each)).tolist():
            first.setdefault(int(groups[kept[place]]), (int(kept[place]), float(each[place])))
        pads = max(0, k - len(first))
        found.append([*list(first.values())[:k], *[(-1, np.inf)] * pads])
    return found


@given(
    *(st.integers(1, 120), st.integers(1, 5), st.integers(1, 40), st.integers(1, 40), st.integers(0, 20)),
    *(st.none() | st.floats(0, 1), st.floats(0, 0.5), st.sampled_from(["flat", "ivf_flat", "hnsw"])),
)
def test_one_of_each_group_and_none_is_missing(count, shards, k, members, seed, share, gone, kind):
    rng = np.random.default_rng(seed)
    if kind != "flat":
        count += 80
    # Members of a group lie together: the nearest scans are of few groups.
    groups = groups_from_codes(rng.integers(-1, 1 + count // members, count))
    vectors = (rng.normal(size=(groups.max() + 1, 6))[groups] + 0.1 * rng.normal(size=(count, 6))).astype(np.float16)
    ids = [f"{row:032x}" for row in range(count)]
    index = index_of(vectors, ids, ["a"] * count, ids, shards, kind)
    buried = rng.random(count) < gone
    index.tombstone([ids[row] for row in np.flatnonzero(buried).tolist()])
    allowed = None if share is None else rng.random(count) < share
    queries = rng.normal(size=(4, 6)).astype(np.float32)
    found = search_groups(index, queries, k, groups, allowed, ALL)
    expected = by_hand(queries, vectors, groups, ~buried if allowed is None else allowed & ~buried, k)
    for rows, distances, pairs in zip(found.rows_qk.tolist(), found.distances_qk.tolist(), expected, strict=True):
        assert list(zip(rows, distances, strict=True)) == pairs


@given(st.lists(st.integers(-1, 5), max_size=20))
def test_what_is_of_no_group_is_one_of_its_own(codes):
    groups = groups_from_codes(np.array(codes, dtype=np.int64))
    for code, group in zip(codes, groups.tolist(), strict=True):
        assert (groups == group).sum() == (1 if code < 0 else codes.count(code))
