import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mrcg.retrieval.merge import HitDetails, ShardHits, assemble_hits, merge_hits, rows_to_fetch
from mrcg.retrieval.search import GalleryFacts


def near(rows, distances, groups=None, shards=1):
    return ShardHits(rows, distances, groups, min(distances, default=None), len(rows) + 5, len(rows), shards, 3)


def fetched(rows):
    facts = [GalleryFacts(None, None, None, None, f"g{row}") for row in rows]
    return HitDetails([f"i{row}" for row in rows], facts, np.array(rows, dtype=np.float16)[:, None])


scans = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.sampled_from(["a", "b", "c", None])), max_size=40)


@given(scans, st.integers(1, 3), st.integers(1, 8), st.booleans())
def test_merged_parts_equal_one_sort_of_all_hits(drawn, parts, n, grouped):
    """``drawn`` has the part, distance and group of each row."""
    all_hits = sorted((float(distance), row, part % parts, group) for row, (part, distance, group) in enumerate(drawn))

    def first_of_each_group(hits):
        seen, kept = set(), []
        for hit in hits:
            if not grouped or hit[3] is None or hit[3] not in seen:
                kept.append(hit)
                seen.add(hit[3])
        return kept

    hits_by_part = [first_of_each_group([hit for hit in all_hits if hit[2] == part])[:n] for part in range(parts)]
    answers = [
        near([hit[1] for hit in hits], [hit[0] for hit in hits], [hit[3] for hit in hits] if grouped else None)
        for hits in hits_by_part
    ]
    expected = [hit[:3] for hit in first_of_each_group(all_hits)[:n]]
    assert [(place.distance, place.row, place.part) for place in merge_hits(answers, n)] == expected


def test_fetched_details_are_ordered_by_distance():
    parts = [near([4, 1], [1.0, 3.0], shards=1), None, near([7, 2], [2.0, 4.0], shards=1)]
    places = merge_hits(parts, 3)
    rows = rows_to_fetch(places, 3)
    assert rows == [[4, 1], [], [7]]
    found = assemble_hits(places, parts, [fetched(rows[0]), None, fetched(rows[2])])
    assert found.image_ids == ["i4", "i7", "i1"]
    assert [one.group for one in found.facts] == ["g4", "g7", "g1"]
    assert found.distances == [1.0, 2.0, 3.0]
    assert found.vectors_nd[:, 0].tolist() == [4, 7, 1]
    assert (found.nearest, found.allowed, found.passing, found.shards, found.total_shards) == (1.0, 14, 4, 2, 3)


def test_no_hits_give_an_empty_answer():
    found = assemble_hits([], [near([], [])], [None])
    assert (found.image_ids, found.nearest, found.shards) == ([], None, 1)
