import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrcg.config.settings import RerankerSettings
from mrcg.metrics.order import BY_DISTANCE, BY_SCORE, HitOrder
from mrcg.reranker.leave_one_out import LeaveOneOut
from mrcg.reranker.scorer import Scorer
from mrcg.reranker.trainer import new_reranker
from mrcg.retrieval.explanation import MAX_INFLUENCES, RankedHits, explain

FUSED = HitOrder(name="fused", distance_weight=0.5)
ORDERS = (BY_DISTANCE, BY_SCORE, HitOrder(name="fused"), FUSED, HitOrder(name="fused", distance_weight=20.0))
each_order = pytest.mark.parametrize("order", ORDERS, ids=lambda order: f"{order.name} {order.distance_weight}")


def names(count):
    return [f"id{place}" for place in range(count)]


def ranked(order, scores, distances=None, copies=None):
    count = len(scores)
    return RankedHits(
        order,
        np.array(scores, dtype=np.float32),
        np.arange(1.0, count + 1) if distances is None else np.array(distances, dtype=np.float64),
        np.zeros(count, bool) if copies is None else np.array(copies),
    )


def unmoved(hits):
    """Scores that are the same whatever is left out."""
    count = len(hits.scores_n)
    return LeaveOneOut(np.full((count, count), 0.25, dtype=np.float32), np.tile(hits.scores_n, (count, 1)))


def naive_order(order, scores, distances, copies):
    """Sort of Python numbers by the definition of each order."""
    places = range(len(scores))
    if order.name == "ann":
        return list(places)
    if order.name == "score":
        return sorted(places, key=lambda place: -scores[place])
    positive = [d for d in distances if d > 0]
    median = np.median(positive) if positive else 1.0

    def key(place):
        score = np.log(max(scores[place], float(np.finfo(np.float32).tiny)))
        return (not copies[place], 0 if copies[place] else order.distance_weight * (distances[place] / median) - score)

    return sorted(places, key=key)


def naive_without(order, hits, left_out, scores):
    kept = [place for place in range(len(scores)) if place != left_out]
    inner = naive_order(
        order, [float(scores[p]) for p in kept], [hits.distances_n[p] for p in kept], [hits.copies_n[p] for p in kept]
    )
    return [kept[place] for place in inner]


def above(order, place, left_out=None):
    """Number of hits above one, without the hit that is left out."""
    return len([other for other in order[: order.index(place)] if other != left_out])


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 8))
    levels = st.sampled_from([k / 8 for k in range(9)])
    scores = draw(st.lists(levels, min_size=count, max_size=count))
    distances = sorted(draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 4.0]), min_size=count, max_size=count)))
    copies = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    rows = draw(st.lists(st.lists(levels, min_size=count, max_size=count), min_size=count, max_size=count))
    left_out = LeaveOneOut(np.full((count, count), 0.5, np.float32), np.array(rows, np.float32).reshape(count, count))
    return scores, distances, copies, left_out


@each_order
@given(graphs())
def test_moves_equal_the_naive_ones(order, graph):
    scores, distances, copies, left_out = graph
    hits, count = ranked(order, scores, distances, copies), len(scores)
    explanation = explain(names(count), hits, left_out, count)
    full = naive_order(order, scores, distances, copies)
    by_score = naive_order(BY_SCORE, scores, distances, copies)
    assert hits.order == full
    assert hits.by_score == by_score
    assert [hit.image_id for hit in explanation.hits] == [f"id{place}" for place in full]
    moved_at_all = False
    for hit, place in zip(explanation.hits, full, strict=True):
        assert hit.rank_change == place - full.index(place)
        assert hit.by_distance == by_score.index(place) - full.index(place)
        moves = {}
        for other in range(count):
            if other != place:
                without = naive_without(order, hits, other, left_out.scores_nn[other])
                moves[f"id{other}"] = above(without, place) - above(full, place, other)
        named = {neighbour.image_id: neighbour.moved for neighbour in hit.neighbours}
        changing = {name: moved for name, moved in moves.items() if moved}
        moved_at_all |= bool(changing)
        assert named.items() <= changing.items()
        assert len(named) == min(MAX_INFLUENCES, len(changing))
        assert [abs(moved) for moved in named.values()] == sorted((abs(m) for m in changing.values()), reverse=True)[
            :MAX_INFLUENCES
        ]
    assert explanation.graph_changed_order == moved_at_all


@each_order
@given(graphs())
def test_the_order_without_a_hit_is_that_of_the_list_of_the_others(order, graph):
    scores, distances, copies, left_out = graph
    hits = ranked(order, scores, distances, copies)
    for place in range(len(scores)):
        row = left_out.scores_nn[place]
        kept = np.delete(np.arange(len(scores)), place)
        alone = ranked(order, row[kept], hits.distances_n[kept], hits.copies_n[kept])
        each = hits.without_each(np.tile(row, (len(row), 1)))[place].tolist()
        assert each == kept[alone.order].tolist() == naive_without(order, hits, place, row)


@each_order
@given(graphs(), st.integers(1, 8))
def test_nodes_are_the_whole_graph_and_hits_are_the_first_k(order, graph, k):
    scores, distances, copies, left_out = graph
    hits, count = ranked(order, scores, distances, copies), len(scores)
    explanation, whole = (explain(names(count), hits, left_out, number) for number in (k, count))
    assert [node.image_id for node in explanation.nodes] == names(count)
    assert [node.ann_rank for node in explanation.nodes] == list(range(1, count + 1))
    assert [node.score for node in explanation.nodes] == scores
    by_rank = sorted(explanation.nodes, key=lambda node: node.rank)
    assert [node.rank for node in by_rank] == list(range(1, count + 1))
    assert [hit.image_id for hit in explanation.hits] == [node.image_id for node in by_rank][:k]
    assert explanation.hits == whole.hits[:k]
    assert explanation.graph_changed_order == whole.graph_changed_order
    assert explanation.weights == left_out.weights_nn.tolist()


@each_order
@pytest.mark.parametrize("copy", [True, False])
def test_one_node_has_nothing_to_change(order, copy):
    hits = ranked(order, [0.3], [0.0], [copy])
    explanation = explain(["a"], hits, LeaveOneOut(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32)), 1)
    hit = explanation.hits[0]
    assert (hit.image_id, hit.rank_change, hit.by_distance, hit.neighbours) == ("a", 0, 0, [])
    assert not explanation.graph_changed_order
    assert hits.without_each(hits.scores_n[None]).shape == (1, 0)


@each_order
@pytest.mark.parametrize("distance", [0.0, 2.0])
def test_equal_distances_change_nothing_against_the_score(order, distance):
    hits = ranked(order, [0.2, 0.9, 0.4], [distance] * 3)
    explanation = explain(names(3), hits, unmoved(hits), 3)
    by_distance = {hit.image_id: hit.by_distance for hit in explanation.hits}
    if order is BY_DISTANCE:
        assert by_distance == {"id0": 2, "id1": -1, "id2": -1}
    else:
        assert hits.order == [1, 2, 0]
        assert set(by_distance.values()) == {0}
    assert not explanation.graph_changed_order


@each_order
def test_equal_scores_keep_the_ann_order_and_change_nothing(order):
    hits = ranked(order, [0.7] * 4)
    explanation = explain(names(4), hits, unmoved(hits), 4)
    assert hits.order == [0, 1, 2, 3]
    assert {(hit.rank_change, hit.by_distance) for hit in explanation.hits} == {(0, 0)}
    assert not explanation.graph_changed_order


@pytest.mark.parametrize("order", [BY_SCORE, HitOrder(name="fused")])
def test_a_neighbour_that_changes_nothing_is_not_named(order):
    hits = ranked(order, [0.2, 0.9, 0.5, 0.4])
    explanation = explain(names(4), hits, unmoved(hits), 4)
    assert hits.order == [1, 2, 3, 0]
    assert [hit.neighbours for hit in explanation.hits] == [[]] * 4
    assert not explanation.graph_changed_order
    scores = unmoved(hits).scores_nn
    scores[2] = [0.2, 0.8, 0.5, 0.1]  # without id2, id3 would be last
    explanation = explain(names(4), hits, LeaveOneOut(np.zeros((4, 4), np.float32), scores), 4)
    moves = {hit.image_id: [(one.image_id, one.moved) for one in hit.neighbours] for hit in explanation.hits}
    assert moves == {"id1": [], "id2": [], "id3": [("id2", 1)], "id0": [("id2", -1)]}
    assert explanation.graph_changed_order


def test_changed_scores_in_an_order_by_distance_move_nothing():
    hits = ranked(BY_DISTANCE, [0.2, 0.9, 0.5])
    scores = np.random.default_rng(1).random((3, 3), dtype=np.float32)
    explanation = explain(names(3), hits, LeaveOneOut(np.zeros((3, 3), np.float32), scores), 3)
    assert not explanation.graph_changed_order


def test_strong_influences_come_first_and_at_most_five_are_named():
    count = 9
    hits = ranked(BY_SCORE, np.linspace(0.9, 0.1, count))
    scores = unmoved(hits).scores_nn
    for left_out in range(1, count):
        scores[left_out, 0] = 0.85 - 0.1 * left_out  # below about so many of the others
    explanation = explain(names(count), hits, LeaveOneOut(np.zeros((count, count), np.float32), scores), 1)
    neighbours = explanation.hits[0].neighbours
    assert [one.image_id for one in neighbours] == ["id8", "id7", "id6", "id5", "id4"]
    assert [one.moved for one in neighbours] == sorted((one.moved for one in neighbours), reverse=True)


def test_a_copy_stays_first_whatever_is_left_out():
    hits = ranked(FUSED, [0.9, 0.1, 0.8], [0.0, 0.0, 1.0], [False, True, False])
    explanation = explain(names(3), hits, unmoved(hits), 3)
    first = explanation.hits[0]
    assert (first.image_id, first.rank_change, first.by_distance) == ("id1", 1, 2)
    assert not explanation.graph_changed_order


@each_order
@given(st.integers(0, 10_000), st.integers(1, 7))
def test_hits_are_as_a_search_without_the_neighbour_would_order_them(order, seed, count):
    """With a real reranker; the search without the neighbour is made anew."""
    draws = np.random.default_rng(seed)
    query, vectors = draws.normal(size=5).astype(np.float32), draws.normal(size=(count, 5)).astype(np.float16)
    distances = np.square(query - vectors.astype(np.float32)).sum(axis=1)
    near = np.argsort(distances)
    vectors, distances = vectors[near], distances[near]
    scorer = Scorer(new_reranker(RerankerSettings(hidden=4, features=("difference", "rank")), 5, 1, "ab"))

    def search(kept):
        scores = scorer.score(query[None], vectors[None, kept], np.ones((1, len(kept)), bool))[0]
        return ranked(order, scores, distances[kept])

    everything = search(np.arange(count))
    left_out = scorer.leave_one_out(query, vectors)
    for place in range(count if count > 1 else 0):
        kept = np.delete(np.arange(count), place)
        assert everything.without_each(left_out.scores_nn)[place].tolist() == kept[search(kept).order].tolist()
