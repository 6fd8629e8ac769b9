"""``mrcg reindex``: a gallery follows its source, the models stay; and a new encoder makes a line beside the old one."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import erasure_factories, factories
from tests.manifests import make_manifest
from tests.unit.cli.test_main import run

from mrcg.api.requests import SearchParams
from mrcg.config.loading import load_config
from mrcg.corpus.embeddings import FOLDER, EmbeddingRows, embedding_file, files_of, read_table, vectors_in
from mrcg.corpus.reader import Corpus, read_scans
from mrcg.corpus.sources import open_source, survey
from mrcg.encoder.appearance import read_appearance
from mrcg.encoder.embedder import Embedder
from mrcg.execution.executor import LocalExecutor, silent
from mrcg.imaging.samples import write_samples
from mrcg.index.sharded_index import ShardedIndex, read_facts
from mrcg.index_build.build import build_index
from mrcg.index_build.build_plan import IndexWork
from mrcg.pipeline.ancestry import source_name
from mrcg.releases.release import read_release, release_numbers
from mrcg.retrieval.local import LocalPipeline
from mrcg.storage.attempts import begin
from mrcg.storage.store import Artefact, Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NEW = 8


@dataclass
class World:
    """A source that grew and lost a scan, and the store that followed it."""

    source: Path
    store: Store
    added: list[Path]
    removed: bytes
    removed_id: str
    result: dict[str, Any]

    def artefact(self, kind: str, number: int | None = None) -> Artefact:
        """What a release (the current one) is made of, also what it does not pin."""
        release = read_release(self.store, number)
        report = self.store.manifest("reports", release.report)
        version = release.pins.get(kind) or report.inputs[kind]
        return self.store.artefact(kind, version)

    @property
    def stages(self) -> dict[str, Any]:
        return {stage["stage"]: stage for stage in self.result["stages"]}


@pytest.fixture(scope="module")
def world(ray_run, cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(ray_run.source, folder / "scans")  # keeps the times
    shutil.copytree(ray_run.store.root, folder / "store")
    store = Store(str(folder / "store"))
    source = survey(open_source(str(folder / "scans")))
    # The copy is another place, and a corpus grows from one of the same place.
    erasure_factories.counted(store, "corpus", read_release(store).corpus, source=source_name(source, None))
    write_samples(folder / "scans" / "no_tumor" / "new", NEW, seed=9)
    gone = sorted((folder / "scans" / "glioma_tumor").glob("patient-*.png"))[7]
    scans = read_scans(store.artefact("corpus", read_release(store).corpus)).to_pylist()
    (ident,) = [row["image_id"] for row in scans if row["source_key"] == f"glioma_tumor/{gone.name}"]
    removed = gone.read_bytes()
    gone.unlink()
    words = ("--source", str(folder / "scans"), "--store", store.url, "--ray", cluster, "--promote", "always", "--json")
    done = factories.mrcg("reindex", *words, timeout=500)
    assert done.returncode == 0, done.stderr
    added = sorted((folder / "scans" / "no_tumor" / "new").rglob("*.png"))
    return World(folder / "scans", store, added, removed, ident, json.loads(done.stdout))


def test_only_what_is_new_is_read(world):
    counts = world.stages["ingest"]["counts"]
    assert list(world.stages) == ["ingest", "split", "embed", "build-index", "build-graphs", "evaluate"]
    assert all(stage["ran"] for stage in world.stages.values())
    assert (counts["files_read"], counts["images"]) == (NEW, 97 + NEW - 1)
    old, new = world.artefact("corpus", 1), world.artefact("corpus")
    assert new.manifest.inputs == {"corpus": old.manifest.version}
    assert {name for name in new.names("images/") if new.entry(name).folder} == set(old.names("images/"))


def test_only_what_is_new_is_embedded(world):
    """Files of earlier scans are referred to; of the one that lost a scan the others' vectors are written again."""
    old, new = world.artefact("embeddings", 1), world.artefact("embeddings")
    before = read_scans(world.artefact("corpus", 1)).to_pylist()
    (lost,) = [embedding_file(row["file"]) for row in before if row["image_id"] == world.removed_id]
    fresh = [name for name in new.names(FOLDER) if name not in old.names()]
    for name in new.names(FOLDER):
        assert (new.entry(name).folder == old.manifest.folder) is (name != lost and name not in fresh), name
    assert sum(read_table(new, name).num_rows for name in fresh) == NEW
    ids = read_table(old, lost)["image_id"].to_pylist()
    stay = [place for place, one in enumerate(ids) if one != world.removed_id]
    assert read_table(new, lost)["image_id"].to_pylist() == [ids[place] for place in stay]
    assert np.array_equal(vectors_in(read_table(new, lost)), vectors_in(read_table(old, lost))[stay])


def test_vectors_are_those_that_the_encoder_gives(world):
    corpus = Corpus(world.artefact("corpus"))
    appearance = read_appearance(world.artefact("embeddings", 1))
    assert appearance is not None
    embedder = Embedder.open(world.artefact("encoders", 2), appearance=appearance)
    _, expected = embedder.embed_images(((str(place), grey) for place, grey in corpus.images(range(len(corpus)))), 16)
    got = EmbeddingRows(world.artefact("embeddings"), files_of(corpus.scans)).take(np.arange(len(corpus)))
    assert np.allclose(got.astype(np.float32), np.asarray(expected, dtype=np.float32), rtol=1e-2, atol=1e-2)


def test_parts_of_the_index_that_did_not_change_are_referred_to(world):
    old, new = world.artefact("indexes", 1), world.artefact("indexes")
    before, after = read_facts(old), read_facts(new)
    stayed = {part.name for part in before.parts} & {part.name for part in after.parts}
    assert stayed
    for name in stayed:
        assert new.entry(f"parts/{name}.vectors.f16").folder == old.manifest.folder
    assert sum(part.live for part in after.parts) == 97 + NEW - 1
    assert sum(part.rows - part.live for part in after.parts if part.name in stayed) == 1, "the one that is gone"
    assert (after.generation, after.shape) == (before.generation + 1, before.shape)


def test_what_was_removed_is_not_found_and_what_is_new_is(world):
    pipeline = LocalPipeline.open(world.store)
    assert world.removed_id not in {hit.image_id for hit in pipeline.search(world.removed, SearchParams(k=20)).hits}
    nearest = pipeline.search(world.removed, SearchParams(k=20, rerank=False)).hits[0]
    assert nearest.distance > 1e-3
    new = {row["image_id"] for row in read_scans(world.artefact("corpus")).to_pylist() if "/new/" in row["source_key"]}
    assert len(new) == NEW
    for path in world.added:
        hit = pipeline.search(path.read_bytes(), SearchParams(k=5, rerank=False)).hits[0]
        assert hit.distance < 1e-3
        assert hit.image_id in new


def test_the_release_before_still_opens_and_answers_as_it_did(world, ray_run):
    assert release_numbers(world.store)[:2] == [1, 2]
    old, same = LocalPipeline.open(world.store, 1), LocalPipeline.open(ray_run.store, 1)
    hit = old.search(world.removed, SearchParams(k=5, rerank=False)).hits[0]
    assert (hit.image_id, hit.distance < 1e-3) == (world.removed_id, True)
    for path in sorted(world.source.rglob("patient-*.png"))[::20]:
        assert (
            old.search(path.read_bytes(), SearchParams(k=20)).hits
            == same.search(path.read_bytes(), SearchParams(k=20)).hits
        )


def test_the_models_stay(world):
    first, second = (read_release(world.store, number) for number in (1, 2))
    assert (second.encoder, second.reranker) == (first.encoder, first.reranker)
    assert not {first.corpus, first.index, first.report} & {second.corpus, second.index, second.report}
    assert world.result["promotion"]["release"] == second.model_dump(mode="json")


@pytest.mark.parametrize(("kind", "shards"), [("flat", 3), ("hnsw", 1)])
def test_it_finds_what_an_index_that_was_built_from_scratch_finds(world, kind, shards):
    store, release = world.store, read_release(world.store, 2)
    config = load_config(None, [f"index.kind={kind}", f"index.shards={shards}", "index.min_recall=0.5"])
    versions = {name: world.artefact(name, 2).manifest.version for name in ("corpus", "embeddings")}
    with begin(store, "indexes", f"scratch{shards}") as attempt:
        work = IndexWork(store.url, versions["corpus"], versions["embeddings"], None, attempt.folder, config.index, 1)
        made = build_index(work, LocalExecutor(), silent)
        attempt.publish(make_manifest("indexes", f"scratch{shards}", {}, versions, {}, made.files))
    grown, scratch = (ShardedIndex.open(store.artefact("indexes", one)) for one in (release.index, f"scratch{shards}"))
    scans = read_scans(store.artefact("corpus", versions["corpus"]))
    queries = EmbeddingRows(store.artefact("embeddings", versions["embeddings"]), files_of(scans)).take(
        np.arange(scans.num_rows)
    )
    one, other = (
        grown.search(queries, 20),
        scratch.exact(queries, 20) if kind == "hnsw" else scratch.search(queries, 20),
    )
    assert np.array_equal(one.rows_qk, other.rows_qk)
    assert np.array_equal(one.distances_qk, other.distances_qk)
    store.remove(f"indexes/scratch{shards}")


def test_where_nothing_is_new_it_says_so(capsys, world):
    number = release_numbers(world.store)[-1]
    code, out, _ = run(capsys, "reindex", "--source", world.source, "--store", world.store.url)
    assert (code, out) == (0, f"nothing to do: release {number} is up to date with this source\n")
    assert release_numbers(world.store)[-1] == number


def test_models_are_not_made_anew_by_an_override(capsys, world):
    words = ("reindex", "--source", world.source, "--store", world.store.url, "--set", "encoder.epochs=1")
    code, _, err = run(capsys, *words)
    assert (
        code,
        "the models or the gallery depend on encoder.epochs; change it with `mrcg run`" in err.replace("\n", " "),
    ) == (
        2,
        True,
    )


def test_a_new_encoder_makes_a_line_beside_the_one_that_serves(capsys, world, cluster):
    store, before = world.store, read_release(world.store)
    scan = world.added[0].read_bytes()
    answered = LocalPipeline.open(store).search(scan, SearchParams(k=10))
    words = ("--source", str(world.source), "--store", store.url, "--ray", cluster, *factories.TINY)
    quick = ("encoder.epochs=1", "reranker.epochs=1", "compute.encoder_workers=1", "evaluate.bootstrap=100")
    other = [word for one in quick for word in ("--set", one)]
    done = factories.mrcg("run", *words, *other, "--promote", "never", "--json", timeout=500)
    assert done.returncode == 0, done.stderr
    stages = {stage["stage"]: stage for stage in json.loads(done.stdout)["stages"]}
    assert {name for name, stage in stages.items() if not stage["ran"]} == {"ingest", "split"}
    # Beside: each has its own vectors of the same gallery, and the old one answers as it did.
    embeddings = store.manifest("embeddings", stages["embed"]["version"])
    assert embeddings.inputs["corpus"] == before.corpus
    assert embeddings.inputs["encoders"] != before.encoder
    assert not [entry.name for entry in embeddings.files if entry.folder]
    assert read_release(store) == before
    assert LocalPipeline.open(store).search(scan, SearchParams(k=10)).hits == answered.hits

    code, out, _ = run(capsys, "releases", "promote", stages["evaluate"]["version"], "--no-gate", "--store", store.url)
    assert (code, out) == (0, f"release {before.number + 1} is current\n")
    pipeline = LocalPipeline.open(store)
    assert pipeline.release.encoder == stages["train-encoder"]["version"]
    hit = pipeline.search(scan, SearchParams(k=5, rerank=False)).hits[0]
    assert (
        hit.image_id
        == LocalPipeline.open(store, before.number).search(scan, SearchParams(k=5, rerank=False)).hits[0].image_id
    )
    assert run(capsys, "releases", "rollback", before.number, "--store", store.url)[0] == 0
    assert read_release(store).pins == before.pins
