"""Parts of a running service die while it is asked: the client loses nothing, and the service mends itself."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from tests.factories import make_release
from tests.serving import ONE_OF_EACH, started
from tests.waiting import wait_until

from mrcg.api.client import Client
from mrcg.api.requests import SearchParams
from mrcg.releases.release import read_release
from mrcg.retrieval.local import LocalPipeline
from mrcg.storage.store import Store

pytestmark = pytest.mark.slow

CLIENTS = 4
WANTED = SearchParams(k=5)


@pytest.fixture(scope="module")
def served(scans, tmp_path_factory):
    store = Store(str(tmp_path_factory.mktemp("faults") / "store"))
    make_release(store, scans)
    with started(store.url, *ONE_OF_EACH) as (url, pid):
        yield store, url, psutil.Process(pid)


def processes(service, title):
    """Those of the service whose title has some words."""
    found = []
    for one in service.children(recursive=True):
        try:
            if title in " ".join(one.cmdline()):
                found.append(one)
        except psutil.Error:
            pass  # it ended while we looked
    return found


class Load:
    """Clients that ask one after the other until they are told to stop."""

    def __init__(self, url, image):
        self.answers, self.errors, self._stop = [], [], threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(url, image)) for _ in range(CLIENTS)]

    def _ask(self, url, image):
        with Client(url, timeout=90, retries=40) as client:
            while not self._stop.is_set():
                try:
                    self.answers.append(client.search(image, WANTED))
                except Exception as error:
                    self.errors.append(error)

    def __enter__(self):
        for one in self._threads:
            one.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        for one in self._threads:
            one.join()


@pytest.mark.parametrize("part", ["Embedder", "Searcher", "Reranker", "Gateway"])
def test_a_replica_that_is_killed_costs_nobody_an_answer(served, scans, part):
    store, url, service = served
    image = sorted(scans.rglob("*.png"))[3].read_bytes()
    expected = LocalPipeline.open(store).search(image, WANTED)
    title = f"ServeReplica:mrcg:{part}"
    before = {one.pid for one in processes(service, title)}
    assert before
    with Load(url, image) as load:
        wait_until(lambda: len(load.answers) > 20)
        for number in before:
            psutil.Process(number).send_signal(signal.SIGKILL)
        wait_until(lambda: {one.pid for one in processes(service, title)} - before, 90)
        wait_until(lambda: httpx.get(f"{url}/readyz", timeout=10).is_success, 90)
        count = len(load.answers)
        wait_until(lambda: len(load.answers) > count + 20)
    assert load.errors == []
    for answer in load.answers:
        # In the index's order the first five may be others: the answer says so.
        if answer.reranked:
            assert {hit.image_id for hit in answer.hits} == {hit.image_id for hit in expected.hits}
        assert not answer.partial
    assert load.answers[-1].reranked
    assert part == "Reranker" or all(answer.reranked for answer in load.answers)


def test_without_its_controller_the_service_answers_on(served, scans):
    _, url, service = served
    image = sorted(scans.rglob("*.png"))[3].read_bytes()
    before = {one.pid for one in processes(service, "ServeController")}
    assert before
    with Load(url, image) as load:
        wait_until(lambda: len(load.answers) > 20)
        for number in before:
            psutil.Process(number).send_signal(signal.SIGKILL)
        wait_until(lambda: {one.pid for one in processes(service, "ServeController")} - before, 90)
        count = len(load.answers)
        wait_until(lambda: len(load.answers) > count + 20)
    assert load.errors == []


@pytest.mark.parametrize("part", ["Embedder", "Searcher", "Reranker"])
def test_a_stage_that_is_slow_for_five_seconds_costs_nobody_an_answer(served, scans, part):
    store, url, service = served
    image = sorted(scans.rglob("*.png"))[3].read_bytes()
    expected = {hit.image_id for hit in LocalPipeline.open(store).search(image, WANTED).hits}
    stopped = processes(service, f"ServeReplica:mrcg:{part}")
    assert stopped
    with Load(url, image) as load:
        wait_until(lambda: len(load.answers) > 20)
        for one in stopped:
            one.suspend()
        time.sleep(5)
        for one in stopped:
            one.resume()
        count = len(load.answers)
        wait_until(lambda: len(load.answers) > count + 20)
    assert load.errors == []
    assert all({hit.image_id for hit in one.hits} == expected for one in load.answers if one.reranked)
    assert load.answers[-1].reranked
    assert {one.pid for one in processes(service, f"ServeReplica:mrcg:{part}")} == {one.pid for one in stopped}


def test_who_has_no_time_left_for_a_slow_reranker_gets_the_order_of_the_index(served, scans):
    store, url, service = served
    image = sorted(scans.rglob("*.png"))[3].read_bytes()
    stopped = processes(service, "ServeReplica:mrcg:Reranker")
    for one in stopped:
        one.suspend()
    try:
        with Client(url, timeout=60) as client:
            answer = client.search(image, SearchParams(k=5, deadline_ms=3000))
    finally:
        for one in stopped:
            one.resume()
    twin = LocalPipeline.open(store).search(image, SearchParams(k=5, rerank=False))
    assert not answer.reranked
    assert [hit.image_id for hit in answer.hits] == [hit.image_id for hit in twin.hits]


def test_a_file_of_the_index_that_is_gone_keeps_new_replicas_out_until_it_is_back(served, scans):
    store, url, service = served
    image = sorted(scans.rglob("*.png"))[3].read_bytes()
    index = store.artefact("indexes", read_release(store).index)
    vectors = index.on_disk(next(name for name in index.names() if name.endswith(".vectors.f16")))
    content, title = vectors.read_bytes(), "ServeReplica:mrcg:Searcher"
    before = processes(service, title)
    with Load(url, image) as load:
        vectors.unlink()
        count = len(load.answers)
        wait_until(lambda: len(load.answers) > count + 20)  # what is mapped stays
        for one in before:
            one.send_signal(signal.SIGKILL)
        # A new replica has tried to load the index and ended: a second one takes its place.
        tried = set()

        def several_tried():
            tried.update({one.pid for one in processes(service, title)} - {one.pid for one in before})
            return len(tried) > len(before)

        wait_until(several_tried, 120)
        vectors.write_bytes(content)
        wait_until(lambda: httpx.get(f"{url}/readyz", timeout=10).is_success, 120)
        count = len(load.answers)
        wait_until(lambda: len(load.answers) > count + 20)
    assert load.errors == []
    assert not any(answer.partial for answer in load.answers)


@pytest.fixture(scope="module")
def narrow(scans, tmp_path_factory):
    """A service with its index in two parts, which takes one request at a time and lets one wait."""
    store = Store(str(tmp_path_factory.mktemp("narrow") / "store"))
    make_release(store, scans)
    settings = (
        *("serve.searcher_parts=2", "serve.part_ms=1000"),
        *("serve.gateway.max_ongoing_requests=1", "serve.gateway.max_queued_requests=1"),
    )
    with started(store.url, *ONE_OF_EACH, *(word for one in settings for word in ("--set", one))) as (url, pid):
        yield url, psutil.Process(pid)


def test_without_one_part_of_the_index_the_other_answers_and_says_so(narrow, scans):
    url, service = narrow
    image = sorted(scans.rglob("*.png"))[3].read_bytes()
    with Client(url, timeout=60) as client:
        whole = client.search(image, WANTED)
        assert (whole.partial, whole.shards_answered) == (False, whole.shards)
        lost = processes(service, "ServeReplica:mrcg:Searcher1")
        assert lost
        for one in lost:
            one.suspend()
        try:
            some = client.search(image, WANTED)
        finally:
            for one in lost:
                one.resume()
        assert some.partial
        assert 0 < some.shards_answered < some.shards == whole.shards
        assert some.hits
        wait_until(lambda: client.search(image, WANTED).hits == whole.hits)


def test_whoever_finds_the_queue_full_is_told_when_to_ask_again(narrow, scans):
    url, service = narrow
    image = sorted(scans.rglob("*.png"))[3].read_bytes()
    busy = processes(service, "ServeReplica:mrcg:Embedder")
    assert busy
    for one in busy:
        one.suspend()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(httpx.post, f"{url}/v1/search", files={"image": image}, timeout=60) for _ in range(8)]
        wait_until(lambda: any(one.done() for one in asked))  # the others wait for the embedder
        for one in busy:
            one.resume()
        answers = [one.result() for one in asked]
    refused = [one for one in answers if one.status_code == 503]
    assert refused
    assert {one.headers.get("Retry-After") for one in refused} == {"1"}
    assert [one.status_code for one in answers if one not in refused] == [200] * (8 - len(refused))
    assert len(refused) < 8
    with Load(url, image) as load:
        wait_until(lambda: len(load.answers) > 20)
    assert load.errors == []
