"""The whole service in this process (Serve's local testing mode) answers as the local twin: the same classes, no cluster."""

import asyncio

import pytest
from ray import serve
from ray.serve.batching import _BatchQueue
from tests.serving import assert_alike
from tests.waiting import wait_until

from mrcg.api.requests import Filters, ImageIdQuery, SearchParams
from mrcg.errors import ImageError, NotFoundError, ReleaseNotLoadedError, StageUnavailableError
from mrcg.retrieval.local import LocalPipeline
from mrcg_serve.app import ServeArgs, build


@pytest.fixture(scope="module")
def gateway(library_store, scans):
    image = sorted(scans.rglob("*.png"))[0].read_bytes()

    def answers():
        try:
            return searched(handle, image, SearchParams(k=1)).reranked
        except (ReleaseNotLoadedError, StageUnavailableError):
            return False  # unlike a cluster, this mode does not wait until its replicas have loaded the release

    with pytest.MonkeyPatch.context() as patch:
        # Before it warns of a setting Serve asks for the replica's context, which this mode does not have.
        patch.setattr(_BatchQueue, "_warn_if_max_batch_size_exceeds_max_ongoing_requests", lambda queue: None)
        handle = serve.run(build(ServeArgs(store=library_store.url)), _local_testing_mode=True)
        wait_until(answers)
        yield handle


@pytest.fixture(scope="module")
def twin(library_store):
    return LocalPipeline.open(library_store)


def searched(gateway, subject, params):
    return gateway.search.remote("local", subject, params).result()


@pytest.mark.parametrize(
    "params",
    [
        SearchParams(k=20),
        SearchParams(k=5, rerank=False),
        SearchParams(k=10, group_by="patient"),
        SearchParams(k=3, filters=Filters(label=("glioma_tumor",))),
        SearchParams(k=3, explain=True),
    ],
    ids=["plain", "ann", "grouped", "filtered", "explained"],
)
def test_hits_are_those_of_the_twin(gateway, twin, scans, params):
    for scan in sorted(scans.rglob("*.png"))[::24]:
        answer, local = searched(gateway, scan.read_bytes(), params), twin.search(scan.read_bytes(), params)
        assert_alike(answer, local)
        assert (answer.explanation is None) == (local.explanation is None) == (not params.explain)


def test_an_image_of_the_gallery_finds_others(gateway, twin, scans):
    scan = sorted(scans.rglob("*.png"))[0].read_bytes()
    first = twin.search(scan, SearchParams(k=1)).hits[0].image_id
    answer = searched(gateway, ImageIdQuery(first), SearchParams(k=5))
    assert_alike(answer, twin.search(ImageIdQuery(first), SearchParams(k=5)))
    assert first not in {hit.image_id for hit in answer.hits}


def test_what_is_wrong_is_said_as_by_the_twin(gateway):
    with pytest.raises(ImageError):
        searched(gateway, b"no scan", SearchParams())
    with pytest.raises(NotFoundError):
        searched(gateway, ImageIdQuery("nobody"), SearchParams())


def test_many_at_once_have_each_their_own(gateway, twin, scans):
    paths = sorted(scans.rglob("*.png"))[:24]

    async def all_of_them():
        asked = [gateway.search.remote("local", path.read_bytes(), SearchParams(k=5)) for path in paths]
        return await asyncio.gather(*asked)

    for path, answer in zip(paths, asyncio.run(all_of_them()), strict=True):
        assert_alike(answer, twin.search(path.read_bytes(), SearchParams(k=5)))
