import random
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.factories import tiny_config
from tests.galleries import Line, Scan, index_config, vectors_of

from mrcg.errors import IntegrityError, NotFoundError, StoreError
from mrcg.execution.executor import silent
from mrcg.index.layout import TRAINED
from mrcg.index.sharded_index import ShardedIndex
from mrcg.releases.release import read_release
from mrcg.releases.verify import verify_store
from mrcg.retrieval.local import LocalPipeline
from mrcg.stages.registry import pipeline_stages
from mrcg.storage.attempts import begin
from mrcg.storage.manifest import Manifest
from mrcg.storage.store import Store

#: What a store with a release has: no trials, which only `mrcg reproduce` makes, and no features, for its trunk is trained.
MADE = [stage.kind for stage in pipeline_stages(tiny_config())]
#: What a service reads of a release.
SERVED = {
    "encoders": ("encoder.json", "model.safetensors"),
    "rerankers": ("reranker.json", "model.safetensors"),
    "indexes": ("",),
}


@pytest.fixture
def sound(library_store, tmp_path):
    """A copy of the store that a test may damage."""
    return Store(str(shutil.copytree(library_store.root, tmp_path / "sound")))


def problems(store):
    return verify_store(store, silent).problems


def flipped(data):
    yield "its first byte", bytes([data[0] ^ 1]) + data[1:]
    middle = len(data) // 2
    yield "a byte within", data[:middle] + bytes([data[middle] ^ 0x80]) + data[middle + 1 :]
    yield "its last byte", data[:-1] + bytes([data[-1] ^ 0x10])


def damaged(data):
    place, bit = random.Random(data).randrange(len(data)), random.Random(data).randrange(8)
    yield f"bit {bit} of byte {place}", data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
    yield "cut", data[:-1]
    yield "longer", data + b"\n"
    yield "gone", None


def put(store, path, data):
    if data is None:
        store.remove(path)
    else:
        store.write_bytes(path, data)


def assert_refused(how, call):
    with pytest.raises((IntegrityError, NotFoundError) if how == "gone" else IntegrityError):
        call()


def test_a_sound_store_has_no_problems(library_store):
    told = []
    found = verify_store(library_store, lambda done, total, note="": told.append((done, total)))
    assert (found.problems, found.notes) == ((), ())
    assert found.versions == len(MADE)
    files = [
        entry
        for kind in MADE
        for one in library_store.versions(kind)
        for entry in library_store.manifest(kind, one).files
        if entry.folder is None
    ]
    assert (found.files, found.size) == (len(files), sum(entry.size for entry in files))
    assert told[-1] == (found.size, found.size)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MADE)
def test_damage_of_any_file_is_reported_and_the_file_refused(kind, sound):
    (version,) = sound.versions(kind)
    artefact = sound.artefact(kind, version)
    assert artefact.names()
    for name in artefact.names():
        path = artefact.relative(name)
        owner = "/".join(path.split("/")[:2])
        data = sound.read_bytes(path)
        for how, wrong in damaged(data):
            put(sound, path, wrong)
            (problem,) = problems(sound)
            assert problem.startswith(f"{sound.url}/{path} "), (how, problem)
            assert problem.endswith(f": restore the file, or remove {owner} and run the command again")
            assert_refused(how, lambda: artefact.read_bytes(name))  # noqa: B023
            assert_refused(how, lambda: artefact.on_disk(name))  # noqa: B023
        put(sound, path, data)
    assert problems(sound) == ()


@pytest.mark.slow
@pytest.mark.parametrize("kind", SERVED)
def test_damaged_files_are_never_served(kind, sound):
    (version,) = sound.versions(kind)
    artefact = sound.artefact(kind, version)
    names = [name for name in artefact.names() if name.startswith(SERVED[kind])]
    assert len(names) >= 2
    for path in [*map(artefact.relative, names), f"{kind}/{version}/manifest.json"]:
        data = sound.read_bytes(path)
        how, wrong = next(damaged(data))
        put(sound, path, wrong)
        assert_refused(how, lambda: LocalPipeline.open(sound))
        put(sound, path, data)
    LocalPipeline.open(sound)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MADE)
def test_damage_of_a_manifest_is_reported_and_the_version_refused(kind, sound):
    (version,) = sound.versions(kind)
    where = f"{kind}/{version}/manifest.json"
    data = sound.read_bytes(where)
    for how, wrong in (*flipped(data), ("cut", data[:-1]), ("empty", b""), ("gone", None)):
        put(sound, where, wrong)
        (problem,) = problems(sound)
        assert (f"{kind}/{version}" if how == "gone" else f"{sound.url}/{where}") in problem, how
        assert_refused(how, lambda: sound.artefact(kind, version))
    put(sound, where, data)
    assert problems(sound) == ()


@given(st.data())
def test_manifest_with_a_changed_byte_is_equal_or_refused(library_store, data):
    kind = data.draw(st.sampled_from(MADE))
    good = library_store.read_bytes(f"{kind}/{library_store.versions(kind)[0]}/manifest.json")
    place, byte = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(0, 255))
    try:
        read = Manifest.parse(good[:place] + bytes([byte]) + good[place + 1 :], "it")
    except IntegrityError:
        return
    assert read == Manifest.parse(good, "it")


@pytest.mark.parametrize("kind", ["hnsw", "ivf_flat"])
def test_damaged_index_files_are_not_searched(kind, store):
    scans = [Scan(number) for number in range(400)]
    line = Line.of(store, scans[:300], vectors_of(scans[:300], 16))
    config = index_config(f"index.kind={kind}", "index.shards=2", "index.recall_sample=16")
    first, _ = line.index(config)
    # Grown: some of its files lie where the first put them.
    artefact = store.artefact("indexes", Line.of(store, scans, vectors_of(scans, 16)).index(config, first)[0])
    assert {entry.folder is None for entry in artefact.manifest.files} == {True, False}
    kinds = {name.rsplit(".", 1)[-1] for name in artefact.names()}
    assert kinds == {"json", "faiss", "f16", "arrow"}
    for name in artefact.names():
        path = artefact.relative(name)
        data = store.read_bytes(path)
        for how, wrong in damaged(data):
            put(store, path, wrong)
            assert len(problems(store)) == 1, "a file that two versions refer to is named once"
            assert_refused(how, lambda: artefact.on_disk(name))  # noqa: B023
            if name != TRAINED:  # a search does not need it
                assert_refused(how, lambda: ShardedIndex.open(artefact))
        put(store, path, data)
    assert problems(store) == ()
    assert len(ShardedIndex.open(artefact)) == 400


def test_missing_versions_are_problems_of_the_current_release_and_notes_of_others(sound):
    first = read_release(sound)
    second = first.model_copy(update={"number": 2})
    sound.create("releases/history/2.json", second.model_dump_json().encode())
    assert problems(sound) == ()
    sound.remove(f"rerankers/{first.reranker}")
    found = verify_store(sound, silent)
    assert found.problems == (
        f"release 2 is current and lacks rerankers/{first.reranker}: restore it, or roll back with "
        "`mrcg releases rollback`",
    )
    assert found.notes == (f"release 1 cannot be rolled back to: rerankers/{first.reranker} is missing",)


def test_damaged_and_missing_releases_are_reported(sound):
    text = sound.read_bytes("releases/history/1.json")
    sound.create("releases/history/3.json", text.replace(b'"number": 1', b'"number": 3'))
    (problem,) = problems(sound)
    assert problem.startswith("releases [1, 3] are not numbered 1 to 2: restore")
    sound.remove("releases/history/3.json")
    sound.write_bytes("releases/history/1.json", text[:-1])
    (problem,) = problems(sound)
    assert problem.endswith("releases/history/1.json is not a release: restore the file")


def test_attempts_are_not_verified(sound):
    with begin(sound, "corpus", "v") as attempt:
        attempt.write("half.parquet", b"1")
        found = verify_store(sound, silent)
        assert (found.versions, found.problems) == (len(MADE), ())


def test_version_removed_meanwhile_is_not_a_problem(sound, monkeypatch):
    trials = [*sound.versions("splits"), "swept"]
    monkeypatch.setattr(
        Store, "versions", lambda store, kind, of=Store.versions: trials if kind == "splits" else of(store, kind)
    )
    assert problems(sound) == ()
    with pytest.raises(StoreError):
        sound.manifest("splits", "swept")
