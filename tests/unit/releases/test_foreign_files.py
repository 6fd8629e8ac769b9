"""Whatever else lies in the folders of a store: a sweep leaves it alone, and nothing stumbles over it."""

import os
import shutil
from pathlib import Path

import pytest
from tests.manifests import make_manifest

from mrcg.execution.executor import silent
from mrcg.privacy.suppression import FOLDER as SUPPRESSION
from mrcg.privacy.suppression import suppressed
from mrcg.privacy.tombstones import FOLDER as TOMBSTONES
from mrcg.privacy.tombstones import Tombstones
from mrcg.releases.gc import sweep
from mrcg.releases.release import read_release
from mrcg.releases.verify import verify_store
from mrcg.stages.registry import artefact_kinds
from mrcg.storage.attempts import abandoned_attempts, begin
from mrcg.storage.catalog import all_manifests, remove_versions, with_dependencies
from mrcg.storage.store import Store


@pytest.fixture
def crowded(library_store, tmp_path):
    """A store with a release, and in each of its folders what desktops, administrators and other programs leave there."""
    root = tmp_path / "store"
    shutil.copytree(library_store.root, root)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.doc").write_text("somebody's work")
    store = Store(str(root))
    folders = [root, *(root / kind for kind in artefact_kinds())]
    for kind in artefact_kinds():
        (root / kind / "_attempts").mkdir(parents=True, exist_ok=True)
        folders += [root / kind / "_attempts", *(root / kind / version for version in store.versions(kind))]
    for name in (SUPPRESSION, TOMBSTONES, "releases/history"):
        (root / name).mkdir(parents=True, exist_ok=True)
        folders.append(root / name)
    for folder in folders:
        (folder / ".DS_Store").write_bytes(b"\0")
        (folder / "._copy.json").write_bytes(b"\0 no JSON")
        (folder / "README").write_text("notes")
        (folder / "notes").mkdir()
        (folder / "notes" / "plan.txt").write_text("notes")
        (folder / "shortcut").symlink_to(elsewhere)
        (folder / "broken").symlink_to(elsewhere / "gone")
    return store, elsewhere


def foreign(store):
    """All entries that ``crowded`` added and that are still there."""
    names = {".DS_Store", "._copy.json", "README", "plan.txt", "shortcut", "broken"}
    return {path for path in Path(store.root).rglob("*") if path.name in names}


def test_a_sweep_takes_unneeded_versions_and_nothing_else(crowded):
    store, elsewhere = crowded
    before = foreign(store)
    unneeded = ("trials", "0123456789ab")
    with begin(store, *unneeded) as attempt:
        entry = attempt.write("a", b"a")
        attempt.publish(make_manifest(*unneeded, {}, {}, {}, [entry]))
    swept = sweep(store, grace_days=0)
    assert "trials/0123456789ab" in swept.versions
    assert not store.has(*unneeded)
    assert foreign(store) == before
    assert (elsewhere / "thesis.doc").read_text() == "somebody's work"
    assert verify_store(store, silent).problems == ()


def test_a_removed_version_leaves_what_others_put_into_its_folder(crowded):
    store, _ = crowded
    manifests = all_manifests(store)
    key = ("reports", read_release(store).report)
    before = foreign(store)
    content = [store.path(store.artefact(*key).relative(name)) for name in store.artefact(*key).names()]
    remove_versions(store, [key], {other: manifest for other, manifest in manifests.items() if other != key})
    assert content
    assert not any(map(os.path.exists, content))
    assert foreign(store) == before


def test_content_behind_a_link_is_removed_with_its_version(crowded):
    """An administrator moved the files of a version to another disk: an erasure has to reach them."""
    store, elsewhere = crowded
    key = ("reports", read_release(store).report)
    folder = Path(store.path(store.artefact(*key).manifest.folder))
    shutil.move(folder, elsewhere / "moved")
    folder.symlink_to(elsewhere / "moved")
    names = store.artefact(*key).names()
    assert store.artefact(*key).read_bytes(names[0])
    remove_versions(store, [key], {other: one for other, one in all_manifests(store).items() if other != key})
    assert [path for path in (elsewhere / "moved").rglob("*") if path.is_file()] == []


def test_attempts_begin_and_end_beside_other_entries(crowded):
    store, _ = crowded
    assert abandoned_attempts(store, claim=True) == []
    with begin(store, "corpus", "0123456789ab") as attempt:
        assert store.exists(attempt.folder)


def test_logs_are_read_beside_other_entries(crowded):
    store, _ = crowded
    assert suppressed(store) == frozenset()
    assert Tombstones(store).refresh() == []
    assert read_release(store).number == 1


def test_a_folder_that_vanishes_meanwhile_is_removed(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    for name in "abc":
        store.write_bytes(f"folder/{name}/file", b"x")
    unlink, calls = os.unlink, []

    def racing(path, **options):
        calls.append(path)
        if len(calls) == 1:
            shutil.rmtree(tmp_path / "folder" / "b")
            unlink(path, **options)
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", racing)
    store.remove("folder")
    assert not (tmp_path / "folder").exists()


def test_removing_a_link_leaves_its_target(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "file").write_bytes(b"x")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "link").symlink_to(tmp_path / "target")
    Store(str(tmp_path / "store")).remove("link")
    assert not (tmp_path / "store" / "link").is_symlink()
    assert (tmp_path / "target" / "file").read_bytes() == b"x"


def test_what_a_sweep_needs_is_found_among_other_entries(crowded):
    store, _ = crowded
    pins = read_release(store).pins.items()
    assert with_dependencies(all_manifests(store), pins) >= set(pins)
