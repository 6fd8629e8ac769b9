"""The service over HTTP and the pipeline in this process give the same hits."""

import json

import pytest
from tests.factories import mrcg
from tests.serving import assert_alike

from mrcg.api.client import Client
from mrcg.api.requests import Filters, ImageIdQuery, SearchParams
from mrcg.retrieval.local import LocalPipeline

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("rerank", [True, False])
def test_http_and_in_process_answer_alike(service, ray_run, rerank):
    local = LocalPipeline.open(ray_run.store)
    scans = sorted(ray_run.source.rglob("patient-*.png"))[::9]
    with Client(service) as client:
        for scan in scans:
            image = scan.read_bytes()
            assert_alike(
                client.search(image, SearchParams(k=20, rerank=rerank)),
                local.search(image, SearchParams(k=20, rerank=rerank)),
            )


WANTED = [
    SearchParams(k=20, group_by="patient"),
    SearchParams(k=10, filters=Filters(label=("glioma_tumor", "no_tumor"))),
    SearchParams(k=10, exclude_patient="nobody", explain=True),
]


@pytest.mark.parametrize("params", WANTED, ids=["grouped", "filtered", "explained"])
def test_whatever_is_asked_both_answer_alike(service, ray_run, params):
    local = LocalPipeline.open(ray_run.store)
    image = sorted(ray_run.source.rglob("patient-*.png"))[7].read_bytes()
    with Client(service) as client:
        remote, twin = client.search(image, params), local.search(image, params)
        assert_alike(remote, twin)
        assert (remote.allowed, remote.passing, remote.classes) == (twin.allowed, twin.passing, twin.classes)
        assert (remote.explanation is None) == (twin.explanation is None) == (not params.explain)
        itself = twin.hits[0].image_id
        assert_alike(client.search(ImageIdQuery(itself), params), local.search(ImageIdQuery(itself), params))


def test_the_command_asks_both_ways(service, ray_run, tmp_path):
    scan = str(sorted(ray_run.source.rglob("patient-*.png"))[0])
    remote = mrcg("query", scan, "--url", service, "--out", str(tmp_path / "remote.png"), "--json")
    local = mrcg("query", scan, "--store", ray_run.store.url, "--json")
    assert (remote.returncode, local.returncode) == (0, 0), remote.stderr + local.stderr
    ids = [[hit["image_id"] for hit in json.loads(done.stdout)["hits"]] for done in (remote, local)]
    assert len(ids[0]) == 10
    assert sorted(ids[0]) == sorted(ids[1])
    assert (tmp_path / "remote.png").read_bytes().startswith(b"\x89PNG")
