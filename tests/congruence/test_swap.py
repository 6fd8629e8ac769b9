"""Releases change while requests come in: none fails, and each is answered as its release says."""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import pytest
from tests.factories import make_release, tiny_config
from tests.serving import assert_alike, serving
from tests.waiting import wait_until

from mrcg.api.client import Client
from mrcg.api.requests import SearchParams
from mrcg.metrics.order import HitOrder
from mrcg.releases.release import promote, read_release, rollback
from mrcg.retrieval.local import LocalPipeline
from mrcg.storage.store import Store

pytestmark = pytest.mark.slow

CLIENTS, SCANS = 16, 12
WANTED = SearchParams(k=10)


@pytest.fixture(scope="module")
def made(scans, tmp_path_factory):
    """A store with the reports of two releases that answer differently, and of one that no service has loaded yet."""
    store = Store(str(tmp_path_factory.mktemp("lines") / "store"))
    unseen = make_release(store, scans, tiny_config("seed=1", "reranker.hidden=4"))
    first = make_release(store, scans, tiny_config("seed=1"))
    second = make_release(store, scans, tiny_config("seed=2"), HitOrder(name="fused", distance_weight=0.64))
    assert first.encoder != second.encoder
    assert unseen.reranker not in (first.reranker, second.reranker)
    return store, first.report, second.report, unseen.report


@pytest.fixture(scope="module")
def url(made):
    """URL of a service on that store."""
    with serving(made[0].url, "--set", "serve.follow_s=0.2", "--set", "serve.grace_s=5") as url:
        yield url


def wait_for(url, number):
    wait_until(lambda: httpx.get(f"{url}/healthz").json()["release"] == number)


def change(url, store, first, second, requests, done):
    """Three promotions and one rollback, spread over the requests."""
    steps = [
        lambda: promote(store, first, None).release,
        lambda: promote(store, second, None).release,
        lambda: rollback(store),
        lambda: promote(store, second, None).release,
    ]
    for place, step in enumerate(steps, 1):
        wait_until(partial(lambda place: done() >= place * requests // (len(steps) + 1), place))
        wait_for(url, step().number)


@pytest.mark.parametrize("requests", [400, pytest.param(2000, marks=pytest.mark.platform)])
def test_no_request_fails_while_releases_change(made, url, scans, requests):
    store, first, second, _ = made
    images = [path.read_bytes() for path in sorted(scans.rglob("*.png"))[:SCANS]]
    start = promote(store, second, None).release.number
    wait_for(url, start)
    answered = []
    changes = ThreadPoolExecutor(1).submit(change, url, store, first, second, requests, lambda: len(answered))
    with Client(url, retries=0) as client, ThreadPoolExecutor(CLIENTS) as pool:

        def ask(number):
            answered.append((number % SCANS, client.search(images[number % SCANS], WANTED)))

        for asked in [pool.submit(ask, number) for number in range(requests)]:
            asked.result()
    changes.result(timeout=120)
    assert len(answered) == requests
    numbers = range(start, start + 5)
    assert {answer.release for _, answer in answered} == set(numbers)
    twins = {number: LocalPipeline.open(store, number) for number in numbers}
    expected = {(scan, n): twin.search(images[scan], WANTED) for scan in range(SCANS) for n, twin in twins.items()}
    for scan, answer in answered:
        assert answer.reranked
        assert_alike(answer, expected[scan, answer.release])
    ids = [[hit.image_id for hit in expected[0, number].hits] for number in numbers[:2]]
    assert ids[0] != ids[1], "the releases have to answer differently"
    assert read_release(store).number == numbers[-1]


def test_a_bad_release_is_refused_and_the_old_one_answers(made, url, scans):
    store, _, second, unseen = made
    image = sorted(scans.rglob("*.png"))[0].read_bytes()
    wait_for(url, promote(store, second, None).release.number)
    with Client(url) as client:
        before = client.search(image, WANTED)
        # Of a release that the service has not loaded: what is in its memory is not read again.
        damaged = store.artefact("rerankers", store.manifest("reports", unseen).inputs["rerankers"]).on_disk(
            "model.safetensors"
        )
        good = damaged.read_bytes()
        try:
            # Before the promotion, which the service may follow at once; it checks manifests, not files.
            damaged.write_bytes(bytes([good[0] ^ 1]) + good[1:])
            new = promote(store, unseen, None).release
            assert new.number == before.release + 1
            time.sleep(5)
            assert client.search(image, WANTED).release == before.release
        finally:
            damaged.write_bytes(good)
