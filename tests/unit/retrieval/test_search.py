"""Decisions of ``answer``, with fake stages."""

import time

import numpy as np
import pytest

from mrcg.api.requests import Filters, ImageIdQuery, SearchParams
from mrcg.errors import StageUnavailableError
from mrcg.reranker.influence import Influences
from mrcg.retrieval.local import _run_sync
from mrcg.retrieval.query import PixelQuery, Query, VectorQuery
from mrcg.retrieval.search import AllowAll, GalleryFacts, RequestContext, SearchHits, SearchSettings, answer

SETTINGS = SearchSettings(neighbours=4, ood_threshold=10.0, rerank_reserve_ms=50)

SCAN = PixelQuery(np.zeros((4, 4), np.uint8))


class Stages:
    def __init__(self, scores=(0.1, 0.9, 0.5, 0.9), fail="", nearest=1.0, found=4):
        self.scores, self.fail, self.nearest, self.found = np.array(scores[:found]), fail, nearest, found
        self.calls, self.shards = [], 4

    def _call(self, stage):
        self.calls.append(stage)
        if stage == self.fail:
            raise StageUnavailableError(f"the {stage} is down")

    async def embed(self, context, pixels_ss):
        self._call("embed")
        return np.zeros(3, dtype=np.float32)

    async def look_up(self, context, image_id):
        self._call("look up")
        return np.zeros(3, dtype=np.float32)

    async def search(self, context, embedding_d, n, scope):
        self._call("search")
        self.scope = scope
        names = [f"id{i}" for i in range(self.found)]
        distances = [self.nearest + i for i in range(self.found)]
        facts = [GalleryFacts(label, "axial", "T1", "north", f"g{i}") for i, label in enumerate("abab"[: self.found])]
        vectors = np.zeros((self.found, 3), dtype=np.float16)
        return SearchHits(names, facts, distances, vectors, self.nearest, 90, 40, self.shards, 4)

    async def rerank(self, context, embedding_d, vectors_nd):
        self._call("rerank")
        return self.scores

    async def explain(self, context, embedding_d, vectors_nd, nodes):
        self._call("explain")
        self.nodes = nodes
        moved = np.array([[0.0, 0.2, -0.3, 0.1], [0.0, 0.0, 0.0, 0.0]], dtype=np.float32)
        return Influences(np.full((4, 4), 0.5, dtype=np.float32), moved[: len(nodes)])


def ask(stages, k=3, seconds=10.0, subject=SCAN, **params):
    context = RequestContext("me", AllowAll().allowed("me"), time.time() + seconds, 7, "trace")
    return _run_sync(answer(stages, SETTINGS, context, Query.of(subject, SearchParams(k=k, **params))))


def test_hits_are_ordered_by_score_ties_by_ann_rank():
    result = ask(Stages())
    assert [(hit.image_id, hit.ann_rank, hit.score) for hit in result.hits] == [
        ("id1", 2, 0.9),
        ("id3", 4, 0.9),
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
    assert stages.nodes == [1, 3]
    explanation = result.explanation
    assert [(node.image_id, node.ann_rank, node.rank) for node in explanation.nodes] == [
        ("id0", 1, 4),
        ("id1", 2, 1),
        ("id2", 3, 3),
        ("id3", 4, 2),
    ]
    assert explanation.weights == [[0.5] * 4] * 4
    assert [(hit.image_id, hit.rank_change) for hit in explanation.hits] == [("id1", 1), ("id3", 2)]
    assert [neighbour.image_id for neighbour in explanation.hits[0].neighbours] == ["id2", "id1", "id3"]
    assert explanation.hits[1].neighbours == []


def test_hits_that_are_not_reranked_are_not_explained():
    assert ask(Stages(fail="rerank"), explain=True).explanation is None
    assert ask(Stages(), rerank=False, explain=True).explanation is None
    assert ask(Stages()).explanation is None
    assert ask(Stages(fail="explain"), explain=True).reranked
