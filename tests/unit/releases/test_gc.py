import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.manifests import make_manifest

from mrcg.api.requests import SearchParams
from mrcg.errors import IntegrityError, StoreError
from mrcg.execution.executor import silent
from mrcg.releases import gc
from mrcg.releases.gc import GRACE_DAYS, sweep
from mrcg.releases.release import HISTORY, Release, missing_parts, promote, read_release, rollback
from mrcg.releases.verify import verify_store
from mrcg.retrieval.local import LocalPipeline
from mrcg.stages.registry import artefact_kinds
from mrcg.storage.attempts import begin
from mrcg.storage.catalog import all_manifests, key_of, name_of, with_dependencies
from mrcg.storage.store import Store

DAY = 86_400


def publish(store, kind, version, inputs=(), files=("a",), shares=(), days=0.0):
    """A version of some days ago; ``shares`` are files that it takes from (kind, version)."""
    inputs = dict(inputs)
    with begin(store, kind, version, inputs) as attempt:
        entries = [attempt.write(name, f"{kind}/{version}/{name}".encode()) for name in files]
        for other in shares:
            old = store.artefact(*other)
            entries += [old.reference(name) for name in old.names() if name not in files]
        manifest = attempt.publish(make_manifest(kind, version, {}, inputs, {}, entries))
    store.record_run(manifest, {"started": time.time() - days * DAY})
    return manifest


def line(store, mark, shares=(), days=100.0, encoder="e", reranker="k", **base):
    """Publish all versions that a release needs and was made from, named by kind and mark."""
    c, s, v, i, g, r = (f"{kind}{mark}" for kind in "csvigr")
    for kind, version, inputs, more in (
        ("corpus", c, {}, {"shares": shares}),
        ("splits", s, {"corpus": c}, {}),
        ("embeddings", v, {"corpus": c, "encoders": encoder}, {}),
        ("indexes", i, {"corpus": c, "embeddings": v}, {}),
        ("graphs", g, {"corpus": c, "splits": s, "embeddings": v, "indexes": i}, {}),
        ("reports", r, {"corpus": c, "splits": s, "embeddings": v, "graphs": g, "rerankers": reranker}, {}),
    ):
        grown = {kind: base[kind]} if kind in base else {}
        publish(store, kind, version, {**inputs, **grown}, days=days, files=(f"{version}.bin",), **more)
    return {"corpus": c, "index": i, "report": r, "encoder": encoder, "reranker": reranker}


def release(store, number, pins):
    """Create a release of a line without any checks."""
    told = {
        "neighbours": 5,
        "ood_threshold": None,
        "protocol": "paper",
        "reranked_map": 0.5,
        "created": "",
        "reason": "",
    }
    store.create(f"{HISTORY}/{number}.json", Release(number=number, **pins, **told).model_dump_json().encode())


def models(store, days=100.0):
    """Publish an encoder and a reranker, and the versions they were trained on."""
    publish(store, "corpus", "learned", days=days)
    publish(store, "splits", "learned", {"corpus": "learned"}, days=days)
    publish(store, "encoders", "e", {"corpus": "learned", "splits": "learned"}, days=days)
    publish(store, "rerankers", "k", {"corpus": "learned", "graphs": "never"}, days=days)


def there(store):
    return {name_of(key) for key in all_manifests(store)}


def everything(store):
    """Return every file with its content, including hidden ones."""
    return {path: path.read_bytes() for path in Path(store.root).rglob("*") if path.is_file()}


def assert_whole(store):
    found = verify_store(store, silent)
    assert found.problems == ()
    for key, manifest in all_manifests(store).items():
        artefact = store.artefact(*key)
        assert [artefact.read_bytes(entry.name) for entry in manifest.files]


def test_pinned_versions_and_their_dependencies_are_kept(store):
    models(store)
    release(store, 1, line(store, 1))
    line(store, 2)
    swept = sweep(store)
    assert there(store) == {
        "corpus/c1", "splits/s1", "embeddings/v1", "indexes/i1", "graphs/g1", "reports/r1", "encoders/e", "rerankers/k",
    }  # fmt: skip
    gone = (
        "corpus/c2",
        "corpus/learned",
        "splits/learned",
        "splits/s2",
        "embeddings/v2",
        "indexes/i2",
        "graphs/g2",
        "reports/r2",
    )
    assert sorted(swept.versions) == sorted(gone)
    assert swept.freed_bytes > 0
    assert_whole(store)
    assert sweep(store).versions == ()


def test_release_still_answers_after_a_sweep(library_store, scans, tmp_path):
    store = Store(str(shutil.copytree(library_store.root, tmp_path / "store")))
    assert sweep(store, keep_releases=1, grace_days=0) == sweep(store, dry_run=True, grace_days=0)
    assert_whole(store)
    image = sorted(scans.rglob("*.png"))[0].read_bytes()
    assert len(LocalPipeline.open(store).search(image, SearchParams(k=5)).hits) == 5


def test_young_versions_and_all_their_inputs_are_kept(store):
    models(store, days=GRACE_DAYS + 1)
    publish(store, "corpus", "old", days=GRACE_DAYS + 1)
    publish(store, "rerankers", "young", {"corpus": "grown", "graphs:1": "g"}, days=GRACE_DAYS - 1)
    publish(store, "graphs", "g", {"corpus": "grown"}, days=GRACE_DAYS + 1)
    publish(store, "corpus", "grown", {"corpus": "base"}, days=GRACE_DAYS + 1)
    publish(store, "corpus", "base", days=GRACE_DAYS + 1)
    sweep(store)
    assert there(store) == {"rerankers/young", "graphs/g", "corpus/grown", "corpus/base"}
    sweep(store, grace_days=GRACE_DAYS - 2)
    assert there(store) == set()


@pytest.mark.parametrize("run", [None, b"{", b"[]", b'{"started": "today"}', b"{}"])
def test_age_without_run_record_is_that_of_the_manifest(store, run):
    publish(store, "corpus", "v")
    store.remove("corpus/v/run.json")
    if run is not None:
        store.write_bytes("corpus/v/run.json", run)
    assert sweep(store, grace_days=1).versions == ()
    past = time.time() - 2 * DAY
    os.utime(store.path("corpus/v/manifest.json"), (past, past))
    assert sweep(store, grace_days=1).versions == ("corpus/v",)
    assert everything(store) == {}


def test_inputs_of_a_running_job_are_kept(store):
    publish(store, "corpus", "base", days=100)
    publish(store, "corpus", "c", {"corpus": "base"}, days=100)
    publish(store, "splits", "s", days=100)
    with pytest.raises(RuntimeError), begin(store, "embeddings", "v", {"corpus": "c"}):
        sweep(store)
        assert there(store) == {"corpus/c", "corpus/base"}
        raise RuntimeError
    # It ended: nobody holds them any more, and one sweep is enough.
    swept = sweep(store)
    assert len(swept.attempts) == 1
    assert sorted(swept.versions) == ["corpus/base", "corpus/c"]
    assert everything(store) == {}


def test_files_placed_by_a_running_job_are_kept(store):
    with begin(store, "corpus", "v") as attempt:
        attempt.write("a", b"1")
        store.link_or_copy(f"{attempt.output}/a", "corpus/v/content/a")
        assert sweep(store) == sweep(store, dry_run=True)
        assert store.read_bytes("corpus/v/content/a") == b"1"


def test_version_published_during_a_sweep_is_kept(store, monkeypatch):
    with begin(store, "corpus", "v") as attempt:
        manifest = make_manifest("corpus", "v", {}, {}, {}, [attempt.write("a", b"1")])

        def held(*args, held=gc._versions_in_use):
            # It has looked at the manifests already.
            if not store.has("corpus", "v"):
                attempt.publish(manifest)
            return held(*args)

        monkeypatch.setattr(gc, "_versions_in_use", held)
        assert sweep(store, grace_days=0).files == ()
    assert store.artefact("corpus", "v").read_bytes("a") == b"1"


def test_release_promoted_during_a_sweep_is_kept(store, monkeypatch):
    models(store)
    pins = line(store, 1)
    monkeypatch.setattr("mrcg.releases.gc.abandoned_writes", lambda store: release(store, 1, pins) or [])
    with pytest.raises(StoreError, match="corpus/c1 came into use during the search"):
        sweep(store)
    assert missing_parts(store, read_release(store)) == []
    assert_whole(store)


def test_referenced_file_is_kept(store):
    publish(store, "corpus", "c0", files=("a", "b"), days=100)
    publish(store, "corpus", "c1", {"corpus": "c0"}, files=("b", "c"), shares=[("corpus", "c0")], days=100)
    first = store.manifest("corpus", "c0")
    models(store)
    release(store, 1, line(store, 2, shares=[("corpus", "c1")], corpus="c1"))
    sweep(store)
    assert there(store).isdisjoint({"corpus/c0", "corpus/c1"})
    # Of c0 only what c2 has by way of c1; of c1 what is its own.
    assert store.files("corpus/c0") == [f"{first.folder.rsplit('/', 1)[1]}/a"]
    assert [name.rsplit("/", 1)[1] for name in store.files("corpus/c1")] == ["b", "c"]
    assert_whole(store)
    # Later nobody refers to them.
    store.remove(f"{HISTORY}/1.json")
    sweep(store)
    assert everything(store) == {}
    assert store.listdir("corpus") == ["_attempts"]


def test_only_the_newest_releases_keep_their_versions(store):
    models(store)
    for number in (1, 2, 3):
        release(store, number, line(store, number))
    assert sweep(store).versions == ("corpus/learned", "splits/learned")
    swept = sweep(store, keep_releases=2)
    assert "corpus/c1" in swept.versions
    assert {"corpus/c2", "corpus/c3"} <= there(store)
    assert missing_parts(store, read_release(store, 1)) == ["corpus/c1", "indexes/i1", "reports/r1"]
    assert sweep(store, keep_releases=99).versions == ()
    sweep(store, keep_releases=1)
    assert "indexes/i2" not in there(store)
    found = verify_store(store, silent)
    assert found.problems == ()
    assert len(found.notes) == 2


def test_release_files_are_kept(store):
    models(store)
    release(store, 1, line(store, 1))
    release(store, 2, line(store, 2))
    store.write_bytes("log/tombstones/x.json", b"[]")
    sweep(store, keep_releases=1, grace_days=0)
    assert store.listdir(HISTORY) == ["1.json", "2.json"]
    assert store.read_bytes("log/tombstones/x.json") == b"[]"


def test_nothing_is_removed_if_a_release_is_unreadable(store):
    publish(store, "corpus", "c", days=100)
    store.write_bytes(f"{HISTORY}/1.json", b"{}")
    with pytest.raises(IntegrityError, match=r"1\.json is not a release"):
        sweep(store)
    assert there(store) == {"corpus/c"}


def test_dry_run_changes_nothing_and_lists_what_would_be_removed(store):
    models(store)
    release(store, 1, line(store, 1))
    line(store, 2)
    with pytest.raises(RuntimeError), begin(store, "corpus", "dead", {"corpus": "c2"}) as dead:
        dead.write("a", b"1")
        raise RuntimeError
    store.write_bytes("corpus/c1/0123456789abcdef/a", b"1")
    before = everything(store)
    said = sweep(store, dry_run=True)
    assert everything(store) == before
    assert said.attempts == (dead.folder,)
    assert said.files == ("corpus/c1/0123456789abcdef/a",)
    assert len(said.versions) == 8
    assert sweep(store) == said
    assert before.items() > everything(store).items()


def test_damaged_version_is_kept(store):
    manifest = publish(store, "corpus", "v1", days=100)
    store.write_bytes("corpus/v1/manifest.json", b"{}")
    assert sweep(store) == sweep(store, dry_run=True)
    assert store.exists(f"{manifest.folder}/a")
    assert sweep(store).versions == ()


def test_unreferenced_files_and_abandoned_attempts_are_removed(store):
    publish(store, "corpus", "v1")
    store.write_bytes("corpus/v1/0123456789abcdef/a.bin", b"placed, then killed")
    store.write_bytes("splits/v9/0123456789abcdef/a.bin", b"placed, then killed")
    store.write_bytes("splits/notes.txt", b"somebody's own: it belongs to no version and is left alone")
    with pytest.raises(RuntimeError), begin(store, "corpus", "v2") as dead:
        raise RuntimeError
    with begin(store, "corpus", "v3") as live:
        swept = sweep(store)
        assert swept.files == ("corpus/v1/0123456789abcdef/a.bin", "splits/v9/0123456789abcdef/a.bin")
        assert swept.attempts == (dead.folder,)
        assert swept.freed_bytes == 2 * len(b"placed, then killed")
        assert store.exists(live.folder)
    assert store.artefact("corpus", "v1").read_bytes("a") == b"corpus/v1/a"
    assert store.listdir("splits") == ["notes.txt"]
    assert store.listdir("corpus/v1") == sorted(["manifest.json", "run.json", store.manifest("corpus", "v1").content])


def test_old_temporary_files_of_killed_writers_are_removed(store):
    publish(store, "corpus", "v")
    names = ("corpus/v/.manifest.json", "releases/history/.1.json", "log/tombstones/.x.json")
    places = [f"{name}.{'0' * 32}.tmp" for name in names]
    for place in places:
        store.write_bytes(place, b"{")
    assert sweep(store).files == ()
    past = time.time() - 2 * DAY
    for place in places:
        os.utime(store.path(place), (past, past))
    with begin(store, "corpus", "w") as live:
        store.write_bytes(f"{live.output}/.a.{'0' * 32}.tmp", b"1")
        os.utime(store.path(f"{live.output}/.a.{'0' * 32}.tmp"), (past, past))
        assert sweep(store, dry_run=True).files == sweep(store).files == tuple(sorted(places))
        assert store.exists(f"{live.output}/.a.{'0' * 32}.tmp")
    assert not any(store.exists(place) for place in places)
    assert there(store) == {"corpus/v"}


def test_removed_versions_can_be_made_again(store):
    before = publish(store, "corpus", "v", days=100)
    sweep(store)
    assert there(store) == set()
    assert publish(store, "corpus", "v") == before
    assert_whole(store)


def test_rollback_to_a_release_with_removed_versions_is_refused(library_store, tmp_path):
    store = Store(str(shutil.copytree(library_store.root, tmp_path / "store")))
    first = read_release(store)
    old = store.artefact("reports", first.report)
    with begin(store, "reports", "other") as attempt:
        files = [old.reference(name) for name in old.names()]
        attempt.publish(make_manifest("reports", "other", {}, old.manifest.inputs, {}, files))
    assert promote(store, "other", None).promoted
    assert sweep(store, keep_releases=1, grace_days=0).versions == (f"reports/{first.report}",)
    with pytest.raises(Exception, match=f"reports/{first.report} is missing"):
        rollback(store)
    assert_whole(store)


def test_keys_and_names():
    assert key_of(name_of(("corpus", "v"))) == ("corpus", "v")
    assert with_dependencies({}, [("corpus", "gone")]) == set()


@st.composite
def stores(draw):
    """Versions that were made from, and share files of, earlier ones; some pinned, some young, some being read."""
    plan = []
    for number in range(draw(st.integers(1, 9))):
        kind = draw(st.sampled_from(["corpus", "embeddings", "indexes", "reports"]))
        before = [one for one in plan if one["kind"] == kind]
        others = [one for one in plan if one["kind"] != kind]
        plan.append(
            {
                "kind": kind,
                "version": f"v{number}",
                "files": tuple(draw(st.lists(st.sampled_from("abcd"), min_size=1, unique=True))),
                "shares": [draw(st.sampled_from(before))] if before and draw(st.booleans()) else [],
                "inputs": draw(st.lists(st.sampled_from(others), max_size=2)) if others else [],
                "days": draw(st.sampled_from([0.0, 100.0])),
                "read": draw(st.integers(0, 4)) == 0,
                "damaged": draw(st.integers(0, 9)) == 0,
            }
        )
    by_kind = {
        kind: [one["version"] for one in plan if one["kind"] == kind] for kind in ("corpus", "indexes", "reports")
    }
    pins = [
        {
            name: draw(st.sampled_from(by_kind[kind]))
            for name, kind in (("corpus", "corpus"), ("index", "indexes"), ("report", "reports"))
        }
        for _ in range(draw(st.integers(0, 3)))
        if all(by_kind.values())
    ]
    return plan, pins


@given(stores(), st.sampled_from([None, 1, 2]), st.sampled_from([0, 14]))
def test_all_files_of_remaining_versions_exist_after_any_sweep(made, keep_releases, grace_days):
    plan, pins = made
    with tempfile.TemporaryDirectory() as folder:
        store, reading = Store(folder), []
        for one in plan:
            inputs = {old["kind"]: old["version"] for old in (*one["inputs"], *one["shares"])}
            shares = [(old["kind"], old["version"]) for old in one["shares"]]
            publish(store, one["kind"], one["version"], inputs, one["files"], shares, one["days"])
        for number, some in enumerate(pins, 1):
            release(store, number, {**some, "encoder": "none", "reranker": "none"})
        damaged = {(one["kind"], one["version"]) for one in plan if one["damaged"]}
        for kind, version in damaged:
            store.write_bytes(f"{kind}/{version}/manifest.json", b"{}")
        for one in plan:
            if one["read"]:
                reading.append(begin(store, "trials", one["version"], {one["kind"]: one["version"]}))
        before = all_manifests(store)
        said = sweep(store, keep_releases, grace_days, dry_run=True)
        swept = sweep(store, keep_releases, grace_days)
        after = all_manifests(store)
        assert swept == said
        assert set(before) - set(after) == {key_of(name) for name in swept.versions}
        for key, manifest in after.items():
            if manifest is not None:
                for entry in manifest.files:
                    assert store.exists(f"{entry.folder or manifest.folder}/{entry.name}"), key
        kept = pins if keep_releases is None else pins[-keep_releases:]
        held = {
            (kind, some[name])
            for some in kept
            for kind, name in (("corpus", "corpus"), ("indexes", "index"), ("reports", "report"))
        }
        young = {(one["kind"], one["version"]) for one in plan if grace_days and one["days"] == 0}
        read = {(one["kind"], one["version"]) for one in plan if one["read"]}
        assert held | young | read | damaged <= set(after)
        # Nothing else is on disk: every file belongs to somebody, and a second sweep finds nothing.
        assert sweep(store, keep_releases, grace_days) == sweep(store, keep_releases, grace_days, dry_run=True)
        if not damaged:
            kinds = [kind for kind in artefact_kinds() if kind != "trials"]
            files = {f"{kind}/{name}" for kind in kinds for name in store.files(kind) if name.count("/") > 1}
            assert files == {f"{e.folder or m.folder}/{e.name}" for m in after.values() for e in m.files}
