import threading

import pytest
from tests.making import make_release, publish, tiny_config

from mrcg.errors import IntegrityError, NotFoundError, ReleaseError
from mrcg.evaluation.report import Report
from mrcg.release import candidate, promote, read_release, release_numbers, rollback
from mrcg.source import open_source, survey
from mrcg.stages import plan
from mrcg.store import Store


@pytest.fixture
def released(scans, tmp_path):
    store = Store(str(tmp_path / "s"))
    return store, make_release(store, scans)


def another(store, scans, drop):
    """A report on the same models under other settings, with a MAP lower by ``drop``."""
    step = plan(tiny_config("evaluate.picture_queries=1"), survey(open_source(str(scans))), "none")[-1]
    first = read_release(store, 1)
    report = Report.model_validate_json(store.artefact("reports", first.report).read_bytes("report.json"))
    worse = report.reranked.model_copy(update={"map": report.reranked.map - drop})
    files = {"report.json": report.model_copy(update={"reranked": worse}).model_dump_json().encode()}
    return publish(store, step, files).version


def test_a_store_without_a_release(store):
    assert release_numbers(store) == []
    with pytest.raises(NotFoundError, match="has no release: `mrcg run` makes"):
        read_release(store)


def test_a_release_pins_the_chain(released):
    store, release = released
    assert read_release(store) == release
    assert all(store.has(kind, version) for kind, version in release.pins.items())
    with pytest.raises(NotFoundError, match="no release 7"):
        read_release(store, 7)


def test_the_same_again_is_no_new_release(released):
    store, release = released
    outcome = promote(store, release.report, None)
    assert not outcome.promoted
    assert "serves exactly this already" in outcome.why
    assert release_numbers(store) == [1]


def test_the_gate_refuses_a_fall_and_says_why(released, scans):
    store, release = released
    worse = another(store, scans, 0.05)
    refused = promote(store, worse, 0.01)
    assert not refused.promoted
    assert "gate: reranked MAP" in refused.why
    assert read_release(store) == release
    assert promote(store, worse, 0.06).promoted


def test_always_promotes_and_rollback_brings_the_old_one_back(released, scans):
    store, release = released
    assert promote(store, another(store, scans, 0.05), None).release.number == 2
    back = rollback(store)
    assert (back.number, back.pins, back.reason) == (3, release.pins, "rolled back to 1")
    assert read_release(store) == back
    assert rollback(store, 2).number == 4


def test_nothing_to_roll_back_to(released):
    with pytest.raises(ReleaseError, match="no release before the current one"):
        rollback(released[0])


def test_a_part_that_is_gone_refuses_the_rollback(released, scans):
    store, release = released
    promote(store, another(store, scans, 0.0), None)
    store.remove(f"rerankers/{release.reranker}")
    with pytest.raises(ReleaseError, match="rerankers/.* is gone"):
        rollback(store)


def test_a_broken_chain_is_not_promoted(released):
    store, release = released
    store.remove(f"indexes/{release.index}")
    with pytest.raises(NotFoundError):
        candidate(store, release.report, 2, "test")


def test_of_two_promoters_one_wins(released, scans):
    store, _ = released
    version = another(store, scans, 0.0)
    outcomes = []

    def go():
        outcomes.append(promote(store, version, None))

    threads = [threading.Thread(target=go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome.promoted for outcome in outcomes].count(True) == 1
    assert release_numbers(store) == [1, 2]
    # The others came second and saw that it serves already.
    assert {outcome.release.number for outcome in outcomes} == {2}


def test_of_two_rollbacks_at_once_the_second_is_told(released, scans, monkeypatch):
    store, _ = released
    promote(store, another(store, scans, 0.0), None)
    store.create("releases/history/3.json", store.read_bytes("releases/history/1.json"))
    monkeypatch.setattr("mrcg.release.release_numbers", lambda store: [1, 2])
    with pytest.raises(ReleaseError, match="release 3 was made by somebody else just now"):
        rollback(store)


def test_the_gate_does_not_compare_protocols(released, scans):
    store, release = released
    step = plan(tiny_config("evaluate.picture_queries=1"), survey(open_source(str(scans))), "none")[-1]
    report = Report.model_validate_json(store.artefact("reports", release.report).read_bytes("report.json"))
    other = report.model_copy(update={"protocol": "dedup"})
    version = publish(store, step, {"report.json": other.model_dump_json().encode()}).version
    refused = promote(store, version, 1.0)
    assert not refused.promoted
    assert "protocol dedup cannot be compared with paper of release 1" in refused.why
    assert promote(store, version, None).promoted


def test_a_damaged_release_is_named(released):
    store, _ = released
    store.write_bytes("releases/history/1.json", b"{}")
    with pytest.raises(IntegrityError, match="1.json is not a release"):
        read_release(store)
