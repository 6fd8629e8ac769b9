"""Searches over gRPC, over HTTP and in this process give the same hits."""

import grpc
import pytest
from tests.serving import assert_alike

from mrcg.api.client import Client
from mrcg.api.requests import SearchParams
from mrcg.retrieval.local import LocalPipeline
from mrcg_serve.rpc import retrieval_pb2 as rpc
from mrcg_serve.rpc.conversions import answer_from_proto
from mrcg_serve.rpc.retrieval_pb2_grpc import RetrievalStub

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(service, grpc_port):
    """The URL of the service and a stub."""
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        yield service, RetrievalStub(channel)


@pytest.fixture(scope="module")
def scans(ray_run):
    found = sorted(ray_run.source.rglob("patient-*.png"))
    return [one.read_bytes() for one in found]


def asked(image, **params):
    return rpc.SearchRequest(image=image, wanted=rpc.Wanted(**params))


def test_a_hundred_scans_have_the_same_hits_all_three_ways(served, scans, ray_run):
    url, stub = served
    local, params = LocalPipeline.open(ray_run.store), SearchParams(k=20)
    with Client(url) as client:
        for scan in (scans * 2)[:100]:
            twin = local.search(scan, params)
            assert_alike(answer_from_proto(stub.Search(asked(scan, k=20))), twin)
            assert_alike(client.search(scan, params), twin)


def test_an_explanation_and_filters_go_with_it(served, scans):
    _, stub = served
    whole = answer_from_proto(stub.Search(asked(scans[0], k=20, explain=True)))
    assert len(whole.explanation.weights) == len(whole.explanation.nodes)
    label = whole.hits[0].label
    some = stub.Search(asked(scans[0], k=5, filters=rpc.Filters(label=[label])))
    assert {hit.label for hit in answer_from_proto(some).hits} == {label}


def test_a_batch_streams_a_line_for_each(served, scans):
    _, stub = served
    request = rpc.SearchBatchRequest(images=[scans[0], b"no scan", scans[1]], wanted=rpc.Wanted(k=3))
    lines = {line.index: line for line in stub.SearchBatch(request)}
    assert sorted(lines) == [0, 1, 2]
    assert lines[1].code == "image_not_an_image"
    assert [len(lines[n].answer.hits) for n in (0, 2)] == [3, 3]


@pytest.mark.parametrize(
    ("request_", "status", "code", "detail"),
    [
        (rpc.SearchRequest(image=b"no scan"), grpc.StatusCode.INVALID_ARGUMENT, "image_not_an_image", "PNG"),
        (rpc.SearchRequest(), grpc.StatusCode.INVALID_ARGUMENT, "invalid_request", "give image"),
        (rpc.SearchRequest(image_id="nobody"), grpc.StatusCode.NOT_FOUND, "not_found", "no image nobody"),
        (
            rpc.SearchRequest(image_id="x", wanted=rpc.Wanted(k=1000)),
            grpc.StatusCode.INVALID_ARGUMENT,
            "invalid_request",
            "k = 1000: ask for 1 to 20 hits",
        ),
        (
            rpc.SearchRequest(image_id="x", wanted=rpc.Wanted(group_by="street")),
            grpc.StatusCode.INVALID_ARGUMENT,
            "invalid_request",
            "group_by: Input should be",
        ),
        (
            rpc.SearchRequest(sent=rpc.Embedding(embedding=[1.0], encoder="another")),
            grpc.StatusCode.FAILED_PRECONDITION,
            "other_encoder",
            "needs the encoder and appearance part",
        ),
    ],
)
def test_a_search_that_fails_says_why(served, request_, status, code, detail):
    _, stub = served
    with pytest.raises(grpc.RpcError) as caught:
        stub.Search(request_)
    assert caught.value.code() == status
    assert caught.value.details().startswith(f"{code}: ")
    assert detail in caught.value.details()
