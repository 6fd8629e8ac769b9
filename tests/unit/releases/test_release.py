import shutil
import threading

import pyarrow as pa
import pytest
from tests.manifests import make_manifest

from mrcg.errors import IntegrityError, LostRaceError, NotFoundError, ReleaseError, WeightsError
from mrcg.metrics.known_items import UNCHANGED
from mrcg.metrics.report import KNOWN, REPORT, Report
from mrcg.releases import release as releases
from mrcg.releases.gc import sweep
from mrcg.releases.release import Gate, candidate, diff, missing_parts, promote, read_release, release_numbers, rollback
from mrcg.reranker.spec import SPEC, read_spec
from mrcg.storage import schemas
from mrcg.storage.attempts import begin
from mrcg.storage.manifest import derive_version
from mrcg.storage.store import Store

GATE = Gate(map_drop=0.01, recall_drop=0.02, known_drop=0.02)


@pytest.fixture
def released(library_store, tmp_path):
    store = Store(str(shutil.copytree(library_store.root, tmp_path / "s")))
    return store, read_release(store)


def remade(store, kind, version, written=None, settings=None, **inputs):
    """Publish a copy of a version with some files, settings or inputs replaced."""
    old = store.artefact(kind, version)
    settings, inputs = {**old.manifest.settings, **(settings or {})}, {**old.manifest.inputs, **inputs}
    new = derive_version(kind, settings, inputs)
    with begin(store, kind, new) as attempt:
        files = [attempt.write(name, data) for name, data in (written or {}).items()]
        files += [old.reference(name) for name in old.names() if name not in (written or {})]
        attempt.publish(make_manifest(kind, new, settings, inputs, old.manifest.counts, files))
    return new


def another(store, drop=0.0, recall_drop=0.0, mark=0, **changes):
    """Publish a report on the same models with other settings and lower figures."""
    version = read_release(store, 1).report
    report = Report.model_validate_json(store.artefact("reports", version).read_bytes(REPORT))
    worse = report.reranked.model_copy(update={"map": report.reranked.map - drop})
    served = report.served.model_copy(update={"map": report.served.map - drop})
    changes |= {"reranked": worse, "served": served, "index_recall_at_50": report.index_recall_at_50 - recall_drop}
    data = report.model_copy(update=changes).model_dump_json().encode()
    return remade(store, "reports", version, {REPORT: data}, {"mark": [drop, recall_drop, mark]})


def test_a_store_without_a_release(store):
    assert release_numbers(store) == []
    with pytest.raises(NotFoundError, match="has no release: `mrcg run` makes"):
        read_release(store)


def test_release_pins_all_versions_behind_its_report(released):
    store, release = released
    assert read_release(store) == release
    assert all(store.has(kind, version) for kind, version in release.pins.items())
    with pytest.raises(NotFoundError, match="no release 7"):
        read_release(store, 7)


def test_promoting_the_same_report_again_makes_no_release(released):
    store, release = released
    outcome = promote(store, release.report, None)
    assert not outcome.promoted
    assert "already serves exactly these versions" in outcome.why
    assert release_numbers(store) == [1]


def test_gate_refuses_a_drop_in_map(released):
    store, release = released
    worse = another(store, drop=0.05)
    refused = promote(store, worse, GATE)
    assert not refused.promoted
    assert refused.why.startswith("gate: MAP")
    assert "release 1 minus release.max_map_drop" in refused.why
    assert read_release(store) == release
    assert promote(store, worse, Gate(map_drop=0.06, recall_drop=0.0, known_drop=0.0)).promoted


def test_gate_refuses_a_drop_in_recall(released):
    store, release = released
    worse = another(store, recall_drop=0.05)
    refused = promote(store, worse, GATE)
    assert not refused.promoted
    assert refused.why == (
        "gate: recall@50 of the index 0.9500 is below 0.9800 (release 1 minus release.max_recall_drop); "
        "`mrcg releases promote --no-gate` overrides"
    )
    assert refused.release == release
    within = promote(store, worse, Gate(map_drop=0.0, recall_drop=0.06, known_drop=0.0))
    assert within.promoted
    assert within.release.recall == pytest.approx(0.95)


def known_items(store, lost, scans=slice(None)):
    """Publish a report in which some scans of the current one no longer find themselves first when they are changed.

    ``lost`` is the share of them, ``scans`` which scans the new report has.
    """
    version = read_release(store, 1).report
    rows = schemas.from_parquet(store.artefact("reports", version).read_bytes(KNOWN)).to_pylist()
    for place, ident in enumerate(dict.fromkeys(row["image_id"] for row in rows)):
        for row in rows:
            if row["image_id"] == ident and row["form"] != UNCHANGED:
                row["served_rank"] = 2 if place < lost * 20 else 1
    kept = list(dict.fromkeys(row["image_id"] for row in rows))[scans]
    table = pa.Table.from_pylist([row for row in rows if row["image_id"] in kept], schema=schemas.KNOWN_ITEMS)
    return remade(store, "reports", version, {KNOWN: schemas.to_parquet(table)}, {"lost": lost, "kept": len(kept)})


def test_gate_refuses_a_drop_in_known_items(released):
    store, _ = released
    assert promote(store, known_items(store, 0.0), None).promoted
    worse = known_items(store, 0.5)
    refused = promote(store, worse, GATE)
    assert not refused.promoted
    assert refused.why.startswith(
        "gate: 50.0 points fewer of the changed gallery scans find themselves first than under"
    )
    assert "release.max_known_drop allows 2); `mrcg releases promote --no-gate` overrides" in refused.why
    assert promote(store, worse, GATE.model_copy(update={"known_drop": 0.5})).promoted


def test_gate_compares_known_items_over_the_scans_that_both_reports_have(released):
    store, _ = released
    promote(store, known_items(store, 0.0), None)
    # The ten scans that would be lost are in the first half: the new gallery does not have them.
    assert promote(store, known_items(store, 0.5, slice(10, None)), GATE).promoted


def test_a_single_lost_scan_may_be_chance(released):
    store, _ = released
    promote(store, known_items(store, 0.0), None)
    assert promote(store, known_items(store, 0.05), GATE).promoted


def test_a_release_without_known_items_is_compared_by_map_alone(released):
    store, release = released
    before = {"known_first", "served_map", "typical_distance", "probability_withheld", "order"}
    store.write_bytes("releases/history/1.json", release.model_dump_json(exclude=before).encode())
    old = read_release(store)
    assert (old.order.name, old.known_first, old.served_map) == ("score", None, None)
    artefact = store.artefact("reports", old.report)
    remaining = [entry for entry in artefact.manifest.files if entry.name != KNOWN]
    changed = artefact.manifest.model_copy(update={"files": tuple(remaining)})
    store.write_bytes(f"reports/{old.report}/manifest.json", changed.to_bytes())
    assert promote(store, remade_with_known(store, artefact), GATE).promoted


def remade_with_known(store, artefact):
    """Publish a report with known items of which none finds itself, beside one that has none."""
    rows = schemas.from_parquet(artefact.read_bytes(KNOWN)).to_pylist()
    table = pa.Table.from_pylist([{**row, "served_rank": 9} for row in rows], schema=schemas.KNOWN_ITEMS)
    return remade(store, "reports", artefact.manifest.version, {KNOWN: schemas.to_parquet(table)}, {"lost": 1})


def test_release_without_recall_is_not_compared_by_recall(released):
    store, release = released
    old = release.model_copy(update={"recall": None})
    store.write_bytes("releases/history/1.json", old.model_dump_json(exclude={"recall"}).encode())
    assert read_release(store).recall is None
    assert promote(store, another(store, recall_drop=0.5), GATE).promoted


def test_promotion_without_gate_and_rollback(released):
    store, release = released
    assert promote(store, another(store, drop=0.05), None).release.number == 2
    back = rollback(store)
    assert (back.number, back.pins, back.reason) == (3, release.pins, "rolled back to 1")
    assert read_release(store) == back
    assert rollback(store, 2).number == 4


def test_rollback_without_an_earlier_release_is_refused(released):
    with pytest.raises(ReleaseError, match="no release before the current one"):
        rollback(released[0])


def test_rollback_with_a_missing_version_is_refused(released):
    store, release = released
    promote(store, another(store), None)
    store.remove(f"rerankers/{release.reranker}")
    with pytest.raises(ReleaseError, match="rerankers/.* is missing"):
        rollback(store)


def test_rollback_to_a_purged_release_is_refused(released):
    store, first = released
    second = promote(store, another(store), None).release
    assert sweep(store, keep_releases=1, grace_days=0).versions == (f"reports/{first.report}",)
    assert missing_parts(store, first) == [f"reports/{first.report}"]
    with pytest.raises(
        ReleaseError, match=f"release 1 cannot serve again: reports/{first.report} is missing .removed by"
    ):
        rollback(store, 1)
    assert read_release(store) == second


def test_report_with_a_missing_version_is_not_promoted(released):
    store, release = released
    store.remove(f"indexes/{release.index}")
    with pytest.raises(NotFoundError):
        candidate(store, release.report, 2, "test")


def test_versions_made_from_different_inputs_are_not_promoted(released):
    store, release = released
    report = store.manifest("reports", release.report)
    # The report's embeddings are not those that its index was made from.
    embeddings = remade(store, "embeddings", report.inputs["embeddings"], settings={"mark": 1})
    index = remade(store, "indexes", release.index, embeddings=embeddings)
    graphs = remade(store, "graphs", report.inputs["graphs"], indexes=index)
    mixed = remade(store, "reports", release.report, graphs=graphs)
    with pytest.raises(ReleaseError, match=f"indexes/{index} was made from embeddings/{embeddings}, the report from"):
        promote(store, mixed, None)
    # Nor are its splits of another corpus.
    corpus = remade(store, "corpus", release.corpus, settings={"mark": 1})
    splits = remade(store, "splits", report.inputs["splits"], corpus=corpus)
    with pytest.raises(ReleaseError, match=f"splits/{splits} was made from corpus/{corpus}"):
        promote(store, remade(store, "reports", release.report, splits=splits), None)
    assert release_numbers(store) == [1]


def test_a_reranker_of_another_encoder_is_not_promoted(released):
    store, release = released
    spec = read_spec(store.artefact("rerankers", release.reranker)).model_copy(update={"encoder": "another"})
    reranker = remade(store, "rerankers", release.reranker, {SPEC: spec.model_dump_json().encode()}, {"mark": 1})
    with pytest.raises(WeightsError, match=f"reranker {reranker} was trained on encoder another, not on"):
        promote(store, remade(store, "reports", release.report, rerankers=reranker), None)
    assert release_numbers(store) == [1]


def test_changed_manifest_is_not_promoted(released):
    store, _release = released
    report = another(store)
    splits = store.manifest("reports", report).inputs["splits"]
    where = f"splits/{splits}/manifest.json"
    store.write_bytes(where, store.read_bytes(where).replace(b'"seed": 1', b'"seed": 2'))
    with pytest.raises(IntegrityError, match="hash mismatch"):
        promote(store, report, None)


def test_diff_of_two_releases(released):
    store, first = released
    graphs = remade(
        store, "graphs", store.manifest("reports", first.report).inputs["graphs"], settings={"graph": {"neighbours": 9}}
    )
    report = remade(store, "reports", another(store, drop=0.125), settings={"mark": "new"}, graphs=graphs)
    second = promote(store, report, None).release
    found = {change.what: (change.before, change.after) for change in diff(store, first, second)}
    assert found == {
        "reports": (first.report, second.report),
        "reports mark": ("null", '"new"'),
        "neighbours": ("20", "9"),
        "reranked_map": (f"{first.reranked_map:.4f}", f"{first.reranked_map - 0.125:.4f}"),
        "served_map": (f"{first.served_map:.4f}", f"{first.served_map - 0.125:.4f}"),
    }
    assert diff(store, first, rollback(store)) == []
    # Also where a part is gone: what was in it nobody can tell.
    store.remove(f"reports/{first.report}")
    assert [change.what for change in diff(store, first, second)] == [
        *("reports", "neighbours", "reranked_map", "served_map"),
    ]


class Promoters:
    """Promotes reports concurrently: all pass the gate before any of them publishes."""

    def __init__(self, monkeypatch, count):
        self.together = threading.Barrier(count)
        publish = releases._publish

        def publish_together(store, release):
            self.together.wait(30)
            publish(store, release)

        monkeypatch.setattr(releases, "_publish", publish_together)

    def promote(self, store, versions):
        """Return the outcome or error of each promotion."""
        results = {}

        def go(number, version):
            try:
                results[number] = promote(store, version, None)
            except ReleaseError as error:
                results[number] = error

        threads = [threading.Thread(target=go, args=pair) for pair in enumerate(versions)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [results[number] for number in range(len(versions))]


def test_concurrent_promotions_of_one_report_make_one_release(released, monkeypatch):
    store, _ = released
    version = another(store)
    outcomes = Promoters(monkeypatch, 6).promote(store, [version] * 6)
    assert [outcome.promoted for outcome in outcomes].count(True) == 1
    assert release_numbers(store) == [1, 2]
    assert {outcome.release.number for outcome in outcomes} == {2}
    assert sum("already serves exactly these versions" in outcome.why for outcome in outcomes) == 5


def test_one_of_concurrent_promotions_of_different_reports_succeeds(released, monkeypatch):
    store, _ = released
    promoters, winners = Promoters(monkeypatch, 3), set()
    for number in range(2, 32):
        versions = [another(store, mark=[number, one]) for one in range(3)]
        outcomes = promoters.promote(store, versions)
        lost = [outcome for outcome in outcomes if isinstance(outcome, LostRaceError)]
        (won,) = [outcome for outcome in outcomes if outcome not in lost]
        assert won.promoted
        assert len(lost) == 2
        assert all(
            str(error)
            == f"release {number} has just been made by another process: look at it (`mrcg releases show`) and try again"
            for error in lost
        )
        assert read_release(store) == won.release
        assert release_numbers(store) == list(range(1, number + 1))
        winners.add(versions.index(won.release.report))
    assert len(winners) > 1, "chance decides"


def test_later_promotion_is_compared_with_the_new_current_release(released):
    store, _ = released
    better, usual = another(store, drop=-0.05), another(store)
    assert promote(store, better, GATE).release.number == 2
    refused = promote(store, usual, GATE)
    assert not refused.promoted
    assert "release 2 minus release.max_map_drop" in refused.why


def test_second_of_two_concurrent_rollbacks_fails(released, monkeypatch):
    store, _ = released
    promote(store, another(store), None)
    store.create("releases/history/3.json", store.read_bytes("releases/history/1.json"))
    monkeypatch.setattr("mrcg.releases.release.release_numbers", lambda store: [1, 2])
    with pytest.raises(ReleaseError, match="release 3 has just been made by another process"):
        rollback(store)


def test_the_gate_does_not_compare_protocols(released):
    store, _ = released
    version = another(store, protocol="dedup")
    refused = promote(store, version, Gate(map_drop=1.0, recall_drop=1.0, known_drop=1.0))
    assert not refused.promoted
    assert "protocol dedup cannot be compared with protocol paper of release 1" in refused.why
    assert promote(store, version, None).promoted


def test_damaged_release_is_reported(released):
    store, _ = released
    store.write_bytes("releases/history/1.json", b"{}")
    with pytest.raises(IntegrityError, match="1.json is not a release"):
        read_release(store)
