"""Conversion between gRPC messages and library types loses nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mrcg.api.requests import EmbeddingQuery, Filters, ImageIdQuery, SearchParams
from mrcg.api.responses import Answer, BatchLine, Explained, Explanation, Hit, Influence, Node
from mrcg.errors import UsageError
from mrcg_serve.auth import Peer
from mrcg_serve.rpc import retrieval_pb2 as rpc
from mrcg_serve.rpc.conversions import (
    answer_from_proto,
    answer_to_proto,
    batch_from_proto,
    line_to_proto,
    search_from_proto,
)

words = st.text(max_size=8)
unknown = st.none() | words
numbers = st.integers(0, 2**31 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
hits = st.builds(
    Hit, image_id=words, label=unknown, plane=unknown, sequence=unknown, site=unknown, group=words,
    score=st.none() | floats, distance=floats, ann_rank=numbers, preview=words, probability=st.none() | floats,
    similarity=st.none() | floats, rank=numbers, score_rank=st.none() | numbers,
)  # fmt: skip
explanations = st.builds(
    Explanation,
    nodes=st.lists(st.builds(Node, image_id=words, ann_rank=numbers, rank=numbers, score=floats), max_size=3),
    weights=st.lists(st.lists(floats, max_size=3), max_size=3),
    hits=st.lists(
        st.builds(
            Explained,
            image_id=words,
            rank_change=st.integers(-50, 50),
            by_distance=st.integers(-50, 50),
            neighbours=st.lists(
                st.builds(Influence, image_id=words, moved=st.integers(-50, 50).map(float)), max_size=2
            ),
        ),
        max_size=2,
    ),
    graph_changed_order=st.booleans(),
)
answers = st.builds(
    Answer, release=numbers, request_id=words, hits=st.lists(hits, max_size=3),
    classes=st.dictionaries(words, numbers, max_size=3), reranked=st.booleans(), partial=st.booleans(),
    shards_answered=numbers, shards=numbers, requested=numbers, found=numbers, allowed=numbers, passing=numbers,
    out_of_distribution=st.booleans(), milliseconds=st.dictionaries(words, floats, max_size=3),
    explanation=st.none() | explanations, order=st.sampled_from(["ann", "fused", "score"]), probability_withheld=unknown,
)  # fmt: skip


@given(answers)
def test_an_answer_survives_the_round_trip(answer):
    assert answer_from_proto(rpc.SearchAnswer.FromString(answer_to_proto(answer).SerializeToString())) == answer


@given(answers)
def test_a_batch_line_has_an_answer_or_a_problem(answer):
    line = line_to_proto(BatchLine(index=3, answer=answer))
    assert (line.index, answer_from_proto(line.answer), line.HasField("code")) == (3, answer, False)
    line = line_to_proto(BatchLine(index=0, code="image_empty", detail="no bytes"))
    assert (line.index, line.code, line.detail, line.HasField("answer")) == (0, "image_empty", "no bytes", False)


def test_unset_fields_have_the_defaults_of_http():
    assert search_from_proto(rpc.SearchRequest(image=b"scan")).params == SearchParams()


def test_all_search_parameters_are_converted():
    params = rpc.Wanted(
        k=3, rerank=False, group_by="study", exclude_patient="p", deadline_ms=50, explain=True,
        filters=rpc.Filters(label=["a", "b"], site=["s"], sequence=["T1"], plane=["axial"], years=[2001, 2009]),
    )  # fmt: skip
    filters = Filters(label=("a", "b"), site=("s",), sequence=("T1",), plane=("axial",), years=(2001, 2009))
    expected = SearchParams(
        k=3, rerank=False, group_by="study", exclude_patient="p", deadline_ms=50, explain=True, filters=filters
    )
    assert search_from_proto(rpc.SearchRequest(image_id="x", wanted=params)).params == expected
    assert batch_from_proto(rpc.SearchBatchRequest(images=[b"1", b"2"], wanted=params)).params == expected


@pytest.mark.parametrize(
    ("request_", "subject"),
    [
        (rpc.SearchRequest(image=b"scan"), b"scan"),
        (rpc.SearchRequest(image_id="x"), ImageIdQuery("x")),
        (
            rpc.SearchRequest(sent=rpc.Embedding(embedding=[0.5, 1], encoder="e")),
            EmbeddingQuery(embedding=(0.5, 1), encoder="e"),
        ),
    ],
)
def test_each_subject_is_converted(request_, subject):
    assert search_from_proto(request_).subject == subject


def test_a_search_without_a_subject_is_refused():
    with pytest.raises(UsageError, match="give image, image_id, or sent"):
        search_from_proto(rpc.SearchRequest())
    with pytest.raises(UsageError, match="0 images: give 1 to"):
        batch_from_proto(rpc.SearchBatchRequest())


@pytest.mark.parametrize(
    "params", [rpc.Wanted(group_by="street"), rpc.Wanted(deadline_ms=0), rpc.Wanted(filters=rpc.Filters(years=[2001]))]
)
def test_invalid_parameters_are_refused(params):
    with pytest.raises(ValidationError):
        search_from_proto(rpc.SearchRequest(image=b"scan", wanted=params))


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:127.0.0.1:50000", "127.0.0.1"),
        ("ipv6:[::1]:50000", "::1"),
        ("ipv6:%5B::1%5D:50000", "::1"),
        ("ipv4:10.0.0.7:1", "10.0.0.7"),
        ("unix:", ""),
    ],
)
def test_a_peer_has_its_address(peer, host):
    assert Peer.of_grpc(peer, {}).host == host
