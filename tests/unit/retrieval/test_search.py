"""Decisions of ``answer``, with fake stages."""

import dataclasses
import time

import numpy as np
import pytest

from mrcg.api.requests import Filters, ImageIdQuery, SearchParams
from mrcg.errors import StageUnavailableError
from mrcg.metrics.calibration import Platt
from mrcg.metrics.order import BY_DISTANCE, BY_SCORE, HitOrder
from mrcg.reranker.leave_one_out import LeaveOneOut
from mrcg.retrieval.local import _run_sync
from mrcg.retrieval.query import PixelQuery, Query, VectorQuery
from mrcg.retrieval.search import AllowAll, GalleryFacts, RequestContext, SearchHits, SearchSettings, answer

#: Of a release made by an earlier version: nothing but the order by score.
SETTINGS = SearchSettings(neighbours=4, ood_threshold=10.0, rerank_reserve_ms=50, trained_dim=3)

SCAN = PixelQuery(np.zeros((4, 4), np.uint8))


class Stages:
    def __init__(self, scores=(0.1, 0.9, 0.5, 0.9), fail="", nearest=1.0, found=4, distances=None, vectors=None):
        self.scores, self.fail = np.array(scores[:found], dtype=np.float32), fail
        self.nearest, self.found = nearest, found
        self.distances = [nearest + i for i in range(found)] if distances is None else distances
        self.vectors = np.zeros((found, 3)) if vectors is None else vectors
        self.calls, self.shards = [], 4

    def _call(self, stage):
        self.calls.append(stage)
        if stage == self.fail:
            raise StageUnavailableError(f"the {stage} is down")

    async def embed(self, context, pixels_ss):
        self._call("embed")
        return np.ones(3, dtype=np.float32)

    async def look_up(self, context, image_id):
        self._call("look up")
        return np.ones(3, dtype=np.float32)

    async def search(self, context, embedding_d, n, scope):
        self._call("search")
        self.scope = scope
        names = [f"id{i}" for i in range(self.found)]
        facts = [GalleryFacts(label, "axial", "T1", "north", f"g{i}") for i, label in enumerate("abab"[: self.found])]
        vectors = np.array(self.vectors, dtype=np.float16)
        return SearchHits(names, facts, self.distances, vectors, self.nearest, 90, 40, self.shards, 4)

    async def rerank(self, context, embedding_d, vectors_nd):
        self._call("rerank")
        return self.scores

    async def explain(self, context, embedding_d, vectors_nd):
        self._call("explain")
        self.explained = embedding_d, vectors_nd
        scores = np.tile(self.scores, (self.found, 1))
        scores[2, 1] = 0.3  # without id2, id1 would be below id3
        return LeaveOneOut(np.full((self.found, self.found), 0.5, dtype=np.float32), scores)


def ask(stages, k=3, seconds=10.0, subject=SCAN, settings=SETTINGS, **params):
    context = RequestContext("me", AllowAll().allowed("me"), time.time() + seconds, 7, "trace")
    return _run_sync(answer(stages, settings, context, Query.of(subject, SearchParams(k=k, **params))))


def test_hits_are_ordered_by_score_ties_by_ann_rank():
    result = ask(Stages())
    assert [(hit.image_id, hit.ann_rank, hit.score) for hit in result.hits] == [
        ("id1", 2, pytest.approx(0.9)),
        ("id3", 4, pytest.approx(0.9)),
        ("id2", 3, 0.5),
    ]
    assert (result.release, result.request_id, result.reranked, result.partial) == (7, "trace", True, False)
    assert (result.requested, result.found) == (3, 3)
    assert set(result.milliseconds) == {"embed", "search", "rerank"}


def test_without_reranking_hits_are_in_ann_order():
    stages = Stages()
    result = ask(stages, rerank=False)
    assert [hit.image_id for hit in result.hits] == ["id0", "id1", "id2"]
    assert result.hits[0].score is None
    assert not result.reranked
    assert stages.calls == ["embed", "search"]


def test_a_reranker_that_is_down_degrades_to_the_ann_order():
    result = ask(Stages(fail="rerank"))
    assert [hit.image_id for hit in result.hits] == ["id0", "id1", "id2"]
    assert not result.reranked


def test_near_the_deadline_the_reranker_is_not_called():
    stages = Stages()
    result = ask(stages, seconds=0.01)
    assert not result.reranked
    assert "rerank" not in stages.calls


@pytest.mark.parametrize("stage", ["embed", "search"])
def test_without_embedder_or_searcher_the_search_fails(stage):
    with pytest.raises(StageUnavailableError, match=f"the {stage} is down"):
        ask(Stages(fail=stage))


def test_an_answer_states_how_many_hits_were_requested_and_found():
    result = ask(Stages(found=2))
    assert (result.requested, result.found, len(result.hits)) == (3, 2, 2)
    empty = ask(Stages(found=0))
    assert (empty.found, empty.hits, empty.reranked) == (0, [], False)


@pytest.mark.parametrize(("nearest", "far"), [(9.9, False), (10.1, True)])
def test_a_query_far_from_all_images_is_flagged(nearest, far):
    assert ask(Stages(nearest=nearest)).out_of_distribution is far


def test_an_image_of_the_gallery_and_an_embedding_are_not_embedded():
    stages = Stages()
    ask(stages, subject=ImageIdQuery("id9"))
    assert stages.calls == ["look up", "search", "rerank"]
    assert stages.scope.exclude_image == "id9"
    stages = Stages()
    ask(stages, subject=VectorQuery(np.ones(3, np.float32)))
    assert stages.calls == ["search", "rerank"]
    assert stages.scope.exclude_image is None


def test_the_scope_is_passed_to_the_searcher():
    stages = Stages()
    ask(stages, filters=Filters(label=("a",), years=(2001, 2005)), exclude_patient="p", group_by="study")
    scope = stages.scope
    assert (scope.where.label, scope.where.years) == (("a",), (2001, 2005))
    assert (scope.exclude_patient, scope.group_by) == ("p", "study")


def test_the_answer_counts_what_could_be_found_and_the_classes_of_its_hits():
    result = ask(Stages())
    assert (result.allowed, result.passing) == (90, 40)
    assert result.classes == {"b": 2, "a": 1}
    assert list(result.classes) == ["b", "a"]
    assert result.hits[0].preview == "/v1/images/id1/preview"
    assert (result.hits[0].plane, result.hits[0].site, result.hits[0].group) == ("axial", "north", "g1")


def test_missing_shards_make_an_answer_partial():
    stages = Stages()
    stages.shards = 3
    result = ask(stages)
    assert (result.partial, result.shards_answered, result.shards) == (True, 3, 4)
    assert not ask(Stages()).partial


def test_an_explanation_has_the_whole_graph_and_the_influences_on_the_hits():
    stages = Stages()
    result = ask(stages, k=2, explain=True)
    embedding, vectors = stages.explained
    assert (embedding.tolist(), vectors.shape) == ([1, 1, 1], (4, 3))
    explanation = result.explanation
    assert [(node.image_id, node.ann_rank, node.rank) for node in explanation.nodes] == [
        ("id0", 1, 4),
        ("id1", 2, 1),
        ("id2", 3, 3),
        ("id3", 4, 2),
    ]
    assert [node.score for node in explanation.nodes] == pytest.approx([0.1, 0.9, 0.5, 0.9])
    assert explanation.weights == [[0.5] * 4] * 4
    assert [(hit.image_id, hit.rank_change) for hit in explanation.hits] == [("id1", 1), ("id3", 2)]
    assert [(hit.by_distance, hit.rank_change) for hit in explanation.hits] == [(0, 1), (0, 2)]
    moves = [[(one.image_id, one.moved) for one in hit.neighbours] for hit in explanation.hits]
    assert moves == [[("id2", 1)], [("id2", -1)]]
    assert explanation.graph_changed_order


def test_hits_that_are_not_reranked_are_not_explained():
    assert ask(Stages(fail="rerank"), explain=True).explanation is None
    assert ask(Stages(), rerank=False, explain=True).explanation is None
    assert ask(Stages()).explanation is None
    assert ask(Stages(fail="explain"), explain=True).reranked


FUSED = dataclasses.replace(SETTINGS, order=HitOrder(name="fused", distance_weight=0.2))
#: A hit of the query's class with a high score, far away; and another, sure as well, near.
SURE = {"scores": (0.02, 0.99, 0.97, 0.999), "distances": [1.0, 1.5, 2.5, 9.0]}


def ids(result):
    return [hit.image_id for hit in result.hits]


def test_in_the_fused_order_the_distance_decides_among_sure_hits():
    result = ask(Stages(**SURE), k=4, settings=FUSED)
    assert ids(result) == ["id1", "id2", "id3", "id0"]
    assert result.order == "fused"
    assert [hit.rank for hit in result.hits] == [1, 2, 3, 4]
    assert [hit.ann_rank for hit in result.hits] == [2, 3, 4, 1]
    assert [hit.score_rank for hit in result.hits] == [2, 3, 1, 4]


def test_ranks_are_those_of_the_whole_list_and_not_of_the_answer():
    result = ask(Stages(**SURE), k=1, settings=FUSED)
    assert [(hit.rank, hit.ann_rank, hit.score_rank) for hit in result.hits] == [(1, 2, 2)]


@pytest.mark.parametrize(
    ("order", "expected"),
    [(BY_SCORE, ["id3", "id1", "id2", "id0"]), (BY_DISTANCE, ["id0", "id1", "id2", "id3"])],
)
def test_a_release_may_order_by_score_or_by_distance(order, expected):
    result = ask(Stages(**SURE), k=4, settings=dataclasses.replace(SETTINGS, order=order))
    assert ids(result) == expected
    assert (result.order, result.reranked) == (order.name, True)
    scores = {hit.image_id: hit.score for hit in result.hits}
    assert [scores[f"id{place}"] for place in range(4)] == pytest.approx(SURE["scores"])
    assert {hit.image_id: hit.score_rank for hit in result.hits} == {"id3": 1, "id1": 2, "id2": 3, "id0": 4}


def test_copies_of_the_query_come_first_in_the_fused_order():
    vectors = [[0, 1, 1], [1, 1, 1], [1, 0, 1], [1, 1, 1]]
    assert ids(ask(Stages(vectors=vectors, **SURE), k=4, settings=FUSED)) == ["id1", "id3", "id2", "id0"]
    assert ids(ask(Stages(vectors=vectors, **SURE), k=4)) == ["id3", "id1", "id2", "id0"], "not by score"


def test_of_vectors_with_an_appearance_part_only_that_part_makes_a_copy():
    vectors = [[0, 0, 1], [1, 1, 0.5], [1, 1, 0.5], [1, 1, 0.5]]
    settings = dataclasses.replace(FUSED, trained_dim=2)
    assert ids(ask(Stages(vectors=vectors, **SURE), k=1, settings=settings)) == ["id0"]
    assert ids(ask(Stages(vectors=vectors, **SURE), k=1, settings=FUSED)) == ["id1"]


def test_a_probability_is_the_calibrated_score():
    fitted = Platt(temperature=2.0, bias=-0.5)
    settings = dataclasses.replace(SETTINGS, calibration=fitted)
    result = ask(Stages(), settings=settings)
    for hit in result.hits:
        assert hit.probability == pytest.approx(1 / (1 + np.exp(0.5 - np.log(hit.score / (1 - hit.score)) / 2)))
    assert result.probability_withheld is None
    for unscored in (ask(Stages(), settings=settings, rerank=False), ask(Stages(fail="rerank"), settings=settings)):
        assert {hit.probability for hit in unscored.hits} == {None}


def test_why_a_probability_is_withheld_is_said_where_hits_are_scored():
    settings = dataclasses.replace(SETTINGS, withheld="there are no validation scans to calibrate on")
    result = ask(Stages(), settings=settings)
    assert {hit.probability for hit in result.hits} == {None}
    assert result.probability_withheld == "there are no validation scans to calibrate on"
    assert ask(Stages(), settings=settings, rerank=False).probability_withheld is None
    assert ask(Stages(fail="rerank"), settings=settings).probability_withheld is None


def test_similarity_is_one_for_a_copy_and_a_half_at_the_typical_distance():
    settings = dataclasses.replace(SETTINGS, typical_distance=2.0)
    stages = Stages(distances=[0.0, 2.0, 6.0, 1e30])
    for reranking in (True, False):
        found = {hit.image_id: hit.similarity for hit in ask(stages, k=4, settings=settings, rerank=reranking).hits}
        assert [found[f"id{place}"] for place in range(4)] == pytest.approx([1.0, 0.5, 0.25, 0.0])


@pytest.mark.parametrize("typical", [None, 0.0])
def test_without_a_typical_distance_there_is_no_similarity(typical):
    result = ask(Stages(), settings=dataclasses.replace(SETTINGS, typical_distance=typical))
    assert {hit.similarity for hit in result.hits} == {None}


def test_a_release_of_an_earlier_version_has_the_order_by_score_and_no_more():
    result = ask(Stages(**SURE), k=4)
    assert ids(result) == ["id3", "id1", "id2", "id0"]
    assert (result.order, result.probability_withheld) == ("score", None)
    assert {(hit.probability, hit.similarity) for hit in result.hits} == {(None, None)}
    assert [hit.score_rank for hit in result.hits] == [hit.rank for hit in result.hits] == [1, 2, 3, 4]


def test_hits_that_are_not_reranked_have_ranks_by_distance_alone():
    for result in (ask(Stages(**SURE), settings=FUSED, rerank=False), ask(Stages(fail="rerank"), settings=FUSED)):
        assert result.order == "ann"
        assert [(hit.rank, hit.ann_rank, hit.score_rank, hit.score) for hit in result.hits] == [
            (place, place, None, None) for place in (1, 2, 3)
        ]


@pytest.mark.parametrize("explaining", [True, False])
def test_a_single_hit_is_answered_and_explained(explaining):
    class One(Stages):
        async def explain(self, context, embedding_d, vectors_nd):
            return LeaveOneOut(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32))

    result = ask(One(found=1), settings=FUSED, explain=explaining)
    assert [(hit.image_id, hit.rank, hit.ann_rank, hit.score_rank) for hit in result.hits] == [("id0", 1, 1, 1)]
    assert (result.explanation is not None) is explaining
    assert not explaining or not result.explanation.graph_changed_order


def test_an_explanation_follows_the_fused_order():
    explanation = ask(Stages(**SURE), k=2, settings=FUSED, explain=True).explanation
    assert [(node.image_id, node.rank) for node in explanation.nodes] == [
        ("id0", 4),
        ("id1", 1),
        ("id2", 2),
        ("id3", 3),
    ]
    assert [(hit.image_id, hit.rank_change, hit.by_distance) for hit in explanation.hits] == [
        ("id1", 1, 1),
        ("id2", 1, 1),
    ]
