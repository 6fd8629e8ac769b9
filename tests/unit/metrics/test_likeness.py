import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from mrcg.metrics.likeness import ndcg

gallery_grades = st.lists(st.integers(0, 5), min_size=10, max_size=30)


@given(gallery_grades, st.randoms(use_true_random=False))
def test_ndcg_equals_that_of_scikit_learn(grades, random):
    ranked = list(grades)
    random.shuffle(ranked)
    ideal = sorted(grades, reverse=True)
    found = ndcg(np.array([ranked[:10]]), np.array([ideal[:10]]))
    expected = ndcg_score([[2**grade - 1 for grade in ranked]], [list(range(len(ranked), 0, -1))], k=10)
    assert found == pytest.approx([expected])


@given(gallery_grades)
def test_the_ideal_order_has_1_and_a_better_hit_first_is_better(grades):
    ideal = np.array([sorted(grades, reverse=True)[:10]])
    assert ndcg(ideal, ideal) == ([1.0] if any(grades) else [0.0])
    worst = ideal[:, ::-1]
    assert ndcg(worst, ideal) <= ndcg(ideal, ideal)


def test_each_query_is_compared_with_its_own_ideal():
    found, ideal = np.array([[1, 0], [0, 0], [0, 0]]), np.array([[1, 0], [5, 5], [0, 0]])
    assert ndcg(found, ideal).tolist() == [1.0, 0.0, 0.0]
