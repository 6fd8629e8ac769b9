"""The chain's decisions, with stages that do as they are told."""

import time

import numpy as np
import pytest

from mrcg.pipeline import _finish
from mrcg.search import AllowAll, Found, RequestContext, SearchSettings, StageUnavailableError, answer

SETTINGS = SearchSettings(neighbours=4, ood_threshold=10.0, rerank_reserve_ms=50)


class Stages:
    def __init__(self, scores=(0.1, 0.9, 0.5, 0.9), fail="", nearest=1.0, found=4):
        self.scores, self.fail, self.nearest, self.found = np.array(scores[:found]), fail, nearest, found
        self.asked = []

    def _ask(self, stage):
        self.asked.append(stage)
        if stage == self.fail:
            raise StageUnavailableError(f"the {stage} is down")

    async def embed(self, context, pixels_ss):
        self._ask("embed")
        return np.zeros(3, dtype=np.float32)

    async def search(self, context, embedding_d, n):
        self._ask("search")
        names = [f"id{i}" for i in range(self.found)]
        distances = [self.nearest + i for i in range(self.found)]
        return Found(names, ["a"] * self.found, distances, np.zeros((self.found, 3), dtype=np.float16))

    async def rerank(self, context, embedding_d, vectors_nd):
        self._ask("rerank")
        return self.scores


def ask(stages, k=3, rerank=True, seconds=10.0):
    context = RequestContext("me", AllowAll().allowed("me"), time.time() + seconds, 7, "trace")
    return _finish(answer(stages, SETTINGS, context, np.zeros((4, 4), np.uint8), k, rerank))


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


def test_without_reranking_the_ann_order_is_answered():
    stages = Stages()
    result = ask(stages, rerank=False)
    assert [hit.image_id for hit in result.hits] == ["id0", "id1", "id2"]
    assert result.hits[0].score is None
    assert not result.reranked
    assert stages.asked == ["embed", "search"]


def test_a_reranker_that_is_down_degrades_to_the_ann_order():
    result = ask(Stages(fail="rerank"))
    assert [hit.image_id for hit in result.hits] == ["id0", "id1", "id2"]
    assert not result.reranked


def test_near_the_deadline_nobody_is_asked_to_rerank():
    stages = Stages()
    result = ask(stages, seconds=0.01)
    assert not result.reranked
    assert "rerank" not in stages.asked


@pytest.mark.parametrize("stage", ["embed", "search"])
def test_without_embedder_or_searcher_there_is_no_answer(stage):
    with pytest.raises(StageUnavailableError, match=f"the {stage} is down"):
        ask(Stages(fail=stage))


def test_fewer_than_asked_is_said():
    result = ask(Stages(found=2))
    assert (result.requested, result.found, len(result.hits)) == (3, 2, 2)
    nothing = ask(Stages(found=0))
    assert (nothing.found, nothing.hits, nothing.reranked) == (0, [], False)


@pytest.mark.parametrize(("nearest", "far"), [(9.9, False), (10.1, True)])
def test_a_query_far_from_everything_is_flagged(nearest, far):
    assert ask(Stages(nearest=nearest)).out_of_distribution is far
