"""Which release a gateway answers from, with stages whose loaded releases a test decides."""

import asyncio
import shutil

import pytest
from tests.unit.releases.test_release import another

from mrcg.config.service import ServeSettings
from mrcg.errors import MrcgError, ReleaseNotLoadedError, StoreError
from mrcg.releases.release import promote, read_release
from mrcg.storage.store import Store
from mrcg_serve.release_pinning import PinnedReleases


class Stages:
    """What all replicas of all stages have loaded."""

    def __init__(self, *numbers):
        self.numbers, self.error = set(numbers), None

    async def releases(self):
        if self.error is not None:
            raise self.error
        return self.numbers


class Searches:
    """Counts test searches; fails them on request."""

    def __init__(self):
        self.count, self.error = 0, None

    async def __call__(self, context):
        self.count += 1
        if self.error is not None:
            raise self.error


@pytest.fixture
def store(library_store, tmp_path):
    return Store(str(shutil.copytree(library_store.root, tmp_path / "store")))


@pytest.fixture
def stages(store):
    return Stages(read_release(store).number)


@pytest.fixture
def searches():
    return Searches()


@pytest.fixture
def seen():
    return []


@pytest.fixture
def pinned(store, stages, searches, seen):
    # Steps are taken by the tests: the background task sleeps for an hour first.
    return PinnedReleases(store, ServeSettings(follow_s=3600), stages, searches, seen.append)


def run(work):
    async def all_of_it():
        try:
            return await work()
        finally:
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    return asyncio.run(all_of_it())


def test_the_first_call_pins_the_current_release(store, pinned, seen):
    async def work():
        await pinned.follow(None)
        await pinned.step()

    run(work)
    assert pinned.number == read_release(store).number
    assert [release.rules for release in pinned.loaded()] == [pinned.pinned.rules]
    assert seen == [pinned.pinned]


def test_without_a_release_the_first_call_fails(tmp_path, stages, searches):
    empty = PinnedReleases(Store(str(tmp_path / "empty")), ServeSettings(), stages, searches, lambda context: None)
    with pytest.raises(MrcgError):
        run(lambda: empty.follow(None))


def test_a_new_release_is_pinned_once_all_replicas_have_it_and_a_search_succeeded(store, stages, searches, pinned):
    async def work():
        await pinned.follow(None)
        first = pinned.number
        new = promote(store, another(store, mark=1), None).release.number
        await pinned.step()
        assert (pinned.number, searches.count) == (first, 0), "a replica lacks it"
        stages.numbers = {first, new}
        searches.error = StoreError("the index does not answer")
        with pytest.raises(StoreError):
            await pinned.step()
        assert (pinned.number, searches.count) == (first, 1)
        searches.error = None
        await pinned.step()
        assert (pinned.number, searches.count) == (new, 2)
        await pinned.step()
        assert searches.count == 2, "it is pinned already"
        assert len(pinned.loaded()) == 2, "requests that began under the first may finish"

    run(work)


def test_a_given_release_is_followed_until_told_otherwise(store, stages, pinned):
    async def work():
        await pinned.follow(None)
        first = pinned.number
        new = promote(store, another(store, mark=1), None).release.number
        stages.numbers = {first, new}
        await pinned.follow(first)
        await pinned.step()
        assert pinned.number == first
        await pinned.follow(None)
        await pinned.step()
        assert pinned.number == new

    run(work)


def test_if_a_replica_lost_the_pinned_release_the_newest_one_that_all_have_is_pinned(store, stages, pinned):
    async def work():
        await pinned.follow(None)
        first = pinned.number
        new = promote(store, another(store, mark=1), None).release.number
        stages.numbers = {first, new}
        await pinned.step()
        assert pinned.number == new
        stages.numbers = {first}
        await pinned.step()
        assert pinned.number == new, "nobody reported that it is missing"
        pinned.report_missing(ReleaseNotLoadedError(f"release {new} is not loaded here"))
        await pinned.step()
        assert pinned.number == first
        stages.numbers = {first, new}
        await pinned.step()
        assert pinned.number == new

    run(work)


def test_a_damaged_release_is_never_pinned(store, stages, searches, pinned):
    async def work():
        await pinned.follow(None)
        first = pinned.number
        version = another(store, mark=1)
        new = promote(store, version, None).release.number
        report = store.artefact("reports", version).on_disk("report.json")
        report.write_bytes(report.read_bytes()[:-1])
        stages.numbers = {first, new}
        await pinned.step()
        assert (pinned.number, searches.count) == (first, 0)

    run(work)


def test_stages_that_cannot_be_asked_change_nothing(store, stages, pinned):
    async def work():
        await pinned.follow(None)
        first = pinned.number
        promote(store, another(store, mark=1), None)
        stages.error = StoreError("no replica answers")
        with pytest.raises(StoreError):
            await pinned.step()
        assert pinned.number == first

    run(work)
