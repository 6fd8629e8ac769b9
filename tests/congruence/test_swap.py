"""Releases change while requests come in: none fails, and each is answered as its release says."""

import shutil
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
    store = Store(str(tmp_path_factory.mktemp("lines") / "store"))
    first = make_release(store, scans, tiny_config("seed=1"))
    second = make_release(store, scans, tiny_config("seed=2"), HitOrder(name="fused", distance_weight=0.64))
    assert first.encoder != second.encoder
    return store, first.report, second.report


@pytest.fixture
def two_lines(made, tmp_path):
    """A store with the reports of two releases that answer differently; the second is current."""
    store, *reports = made
    return Store(str(shutil.copytree(store.root, tmp_path / "store"))), *reports


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
def test_no_request_fails_while_releases_change(two_lines, scans, requests):
    store, first, second = two_lines
    images = [path.read_bytes() for path in sorted(scans.rglob("*.png"))[:SCANS]]
    answered = []
    with serving(store.url, "--set", "serve.follow_s=0.2", "--set", "serve.grace_s=5") as url:
        changes = ThreadPoolExecutor(1).submit(change, url, store, first, second, requests, lambda: len(answered))
        with Client(url, retries=0) as client, ThreadPoolExecutor(CLIENTS) as pool:

            def ask(number):
                answered.append((number % SCANS, client.search(images[number % SCANS], WANTED)))

            for asked in [pool.submit(ask, number) for number in range(requests)]:
                asked.result()
        changes.result(timeout=120)
    assert len(answered) == requests
    assert {answer.release for _, answer in answered} == {2, 3, 4, 5, 6}
    twins = {number: LocalPipeline.open(store, number) for number in range(2, 7)}
    expected = {(scan, n): twin.search(images[scan], WANTED) for scan in range(SCANS) for n, twin in twins.items()}
    for scan, answer in answered:
        assert answer.reranked
        assert_alike(answer, expected[scan, answer.release])
    ids = {number: [hit.image_id for hit in expected[0, number].hits] for number in (2, 3)}
    assert ids[2] != ids[3], "the releases have to answer differently"
    assert read_release(store).number == 6


def test_a_bad_release_is_refused_and_the_old_one_answers(two_lines, scans):
    store, first, _ = two_lines
    image = sorted(scans.rglob("*.png"))[0].read_bytes()
    with serving(store.url, "--set", "serve.follow_s=0.2") as url, Client(url) as client:
        before = client.search(image, WANTED)
        new = promote(store, first, None).release
        assert new.number == before.release + 1
        artefact = store.artefact("rerankers", new.reranker)
        damaged = artefact.on_disk("model.safetensors")
        good = damaged.read_bytes()
        try:
            damaged.write_bytes(bytes([good[0] ^ 1]) + good[1:])
            time.sleep(5)
            assert client.search(image, WANTED).release == before.release
        finally:
            damaged.write_bytes(good)
