import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mrcg.evaluation.masking import ScanAttributes, count_shared, mask_own_hits, reachable
from mrcg.reranker.graph_table import GraphTable

SCANS = ScanAttributes(
    labels=["a", "a", "a", "b", "a"],
    groups=["g0", "g0", "g2", "g3", "g4"],
    patients=["p", None, "p", None, "q"],
)


def table(queries, rows):
    rows = np.array(rows)
    return GraphTable(
        np.array(queries), rows, np.where(rows >= 0, np.arange(rows.shape[1]), np.inf).astype(np.float32), rows >= 0
    )


def test_hits_of_own_group_and_patient_are_removed_and_the_rest_moves_up():
    masked, count = mask_own_hits(table([0], [[1, 3, 2, 4, -1]]), SCANS)
    assert masked.neighbours_qn.tolist() == [[3, 4, -1, -1, -1]]
    assert masked.relevant_qn.tolist() == [[True, True, False, False, False]]
    assert masked.distances_qn.tolist() == [[1.0, 3.0, np.inf, np.inf, np.inf]]
    assert count == 2


def test_unknown_patients_are_not_the_same_patient():
    masked, count = mask_own_hits(table([3], [[1, 0, -1]]), SCANS)
    assert masked.neighbours_qn.tolist() == [[1, 0, -1]]
    assert count == 0


scan_rows = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.sampled_from("xyz"), st.sampled_from(["p", "q", None]), st.booleans()),
    min_size=1, max_size=15,
)  # fmt: skip


@given(scan_rows, st.booleans())
def test_reachable_equals_the_naive_count(rows, mask_own):
    scans = ScanAttributes([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])
    gallery = np.array([r[3] for r in rows])
    expected = []
    for label, group, patient, _ in rows:
        own = [g == group or (patient is not None and p == patient) for _, g, p, _ in rows]
        expected.append(
            sum(
                ok and other[0] == label and not (mask_own and o)
                for ok, other, o in zip(gallery, rows, own, strict=True)
            )
        )
    assert reachable(np.arange(len(rows)), gallery, scans, mask_own).tolist() == expected


@given(scan_rows)
def test_masked_lists_hold_no_own_scan_and_keep_the_order_of_the_others(rows):
    scans = ScanAttributes([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])
    lists = table(range(len(rows)), [list(range(len(rows)))] * len(rows))
    masked, count = mask_own_hits(lists, scans)
    for q, (_, group, patient, _) in enumerate(rows):
        expected = [r for r, o in enumerate(rows) if o[1] != group and (patient is None or o[2] != patient)]
        hits = masked.neighbours_qn[q]
        assert hits[hits >= 0].tolist() == expected
        assert masked.relevant_qn[q].sum() == len(expected)
    assert count == sum((masked.neighbours_qn < 0).sum(axis=1))


def test_count_of_queries_that_share_a_name_with_the_gallery():
    test, train = np.array([True, True, True, False, False]), np.array([False, False, False, True, True])
    assert count_shared(test, train, ["a", "b", None, "a", None]) == 1
