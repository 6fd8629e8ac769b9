"""Training on Ray: as many workers as one likes, one that dies, the paper's recipe, its tables, graphs of fresh eyes."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from tests.factories import MRCG, TINY, mrcg

from mrcg.corpus.embeddings import embeddings_of
from mrcg.corpus.reader import IMAGES, Corpus
from mrcg.encoder.appearance import read_appearance
from mrcg.encoder.embedder import Embedder
from mrcg.encoder.spec import HISTORY, read_spec
from mrcg.evaluation.paper_systems import MARGINS, SYSTEMS, Reproduction
from mrcg.evaluation.paper_tables import reproduction_markdown
from mrcg.imaging.samples import write_samples
from mrcg.metrics.report import Report
from mrcg.storage.store import Store
from mrcg.training.state import snapshots_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def setting(*overrides):
    return [word for one in overrides for word in ("--set", one)]


#: An encoder whose epochs follow from its batches alone: explicit triplets, no BatchNorm, no dropout, nothing augmented.
PLAIN = setting(
    "ingest.file_bytes=65536", "encoder.backbone=vgg11", "encoder.freeze=convolutions", "encoder.mining=explicit",
    "encoder.augment=false", "encoder.schedule=constant", "encoder.epochs=3", "encoder.input_size=64",
    "encoder.embedding_dim=32", "encoder.margin=1", "encoder.learning_rate=0.01", "encoder.snapshots=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_samples(folder, 96, seed=1)
    return str(folder)


def stage_words(name, source, store, cluster, *more):
    return [name, "--source", source, "--store", store.url, "--ray", cluster, "--recipe", "demo", *more]


@pytest.fixture(scope="module")
def prepared(source, cluster, tmp_path_factory):
    """A store with the corpus, the splits and the trunk features that all trainings read."""
    store = Store(str(tmp_path_factory.mktemp("prepared") / "store"))
    for name in ("ingest", "split", "extract-features"):
        done = mrcg(*stage_words(name, source, store, cluster, *PLAIN))
        assert done.returncode == 0, done.stderr
    return store


def copied(prepared, folder):
    return Store(str(shutil.copytree(prepared.root, folder)))


def encoder_of(store):
    (version,) = store.versions("encoders")
    return store.artefact("encoders", version)


def losses(encoder):
    return [epoch["loss"] for epoch in json.loads(encoder.read_bytes(HISTORY))["epochs"]]


def train_encoder(source, store, cluster, *more):
    done = mrcg(*stage_words("train-encoder", source, store, cluster, *more))
    assert done.returncode == 0, done.stderr
    return encoder_of(store)


@pytest.fixture(scope="module")
def alone(source, prepared, cluster, tmp_path_factory):
    """What one worker makes without being disturbed."""
    return train_encoder(source, copied(prepared, tmp_path_factory.mktemp("alone") / "store"), cluster, *PLAIN)


@pytest.mark.platform
def test_two_workers_go_down_the_same_curve_as_one(alone, source, prepared, cluster, tmp_path):
    two = train_encoder(
        source, copied(prepared, tmp_path / "two"), cluster, *PLAIN, *setting("compute.encoder_workers=2")
    )
    curve = losses(alone)
    assert len(curve) == 3 and curve[-1] < 0.99 * curve[0]
    assert np.allclose(losses(two), curve, rtol=1e-4)


def test_embedding_runs_the_branches_on_stored_features_and_gives_what_the_network_gives(
    alone, source, cluster, tmp_path
):
    store = alone.store
    done = mrcg(*stage_words("embed", source, store, cluster, *PLAIN))
    assert done.returncode == 0, done.stderr
    (version,) = store.versions("embeddings")
    embeddings, corpus = (
        store.artefact("embeddings", version),
        Corpus(store.artefact("corpus", *store.versions("corpus"))),
    )
    assert embeddings.manifest.inputs["features"] in store.versions("features")
    embedder = Embedder.open(alone, appearance=read_appearance(embeddings))
    names = corpus.artefact.names(IMAGES)
    assert len(names) > 1
    assert embedder.appearance is not None
    direct = np.concatenate([embedder.embed_images(corpus.images_of(name))[1] for name in names])
    assert np.array_equal(embeddings_of(embeddings), direct)


def test_two_workers_mine_among_the_images_of_both(source, prepared, cluster, tmp_path):
    mined = [*PLAIN, *setting("encoder.mining=batch_all", "encoder.gather=true", "encoder.epochs=2")]
    one = train_encoder(source, copied(prepared, tmp_path / "one"), cluster, *mined)
    two = train_encoder(
        source, copied(prepared, tmp_path / "two"), cluster, *mined, *setting("compute.encoder_workers=2")
    )
    assert losses(one)[1] < losses(one)[0]
    assert np.allclose(losses(two), losses(one), rtol=1e-4)


def test_a_loss_that_is_no_number_ends_the_run_at_once_and_names_the_images(source, prepared, cluster, tmp_path):
    store = copied(prepared, tmp_path / "store")
    wild = [*PLAIN, *setting("encoder.learning_rate=1e30", "compute.encoder_workers=2")]
    done = mrcg(*stage_words("train-encoder", source, store, cluster, *wild))
    assert done.returncode == 1
    assert re.search(r"the loss is \S+ in epoch 0, batch \d+ \(images [0-9a-f]{32}, .*lower encoder", done.stderr)


def train_workers(cluster):
    """Process ids of the training workers of one cluster, by its raylet."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
            if b"ray::" not in words or b"TrainWorker" not in words:
                continue
            parent = (folder / "status").read_text().split("PPid:")[1].split()[0]
            if cluster.encode() in Path(f"/proc/{parent}/cmdline").read_bytes():
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
    return found


def test_a_worker_killed_in_the_second_of_three_epochs_is_replaced(alone, source, prepared, cluster, tmp_path):
    store = copied(prepared, tmp_path / "store")
    words = stage_words("train-encoder", source, store, cluster, *PLAIN, *setting("compute.checkpoint_minutes=0"))
    run = subprocess.Popen([MRCG, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    attempts, until = Path(store.path("encoders/_attempts")), time.monotonic() + 200
    while not list(attempts.glob("*/checkpoints/000000.safetensors")):
        assert run.poll() is None and time.monotonic() < until
        time.sleep(0.002)
    killed = train_workers(cluster)
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    _, err = run.communicate(timeout=300)
    assert killed, "no training worker was found"
    assert run.returncode == 0, err
    # It went on after the first epoch, and came to the same bytes.
    encoder = encoder_of(store)
    assert losses(encoder) == losses(alone)
    assert sorted(snapshots_of(encoder)) == [1, 2]
    assert encoder.manifest.content == alone.manifest.content


@pytest.mark.platform
def test_the_papers_recipe_runs_from_scans_to_report(source, cluster, tmp_path):
    store = Store(str(tmp_path / "store"))
    words = ["run", "--source", source, "--store", store.url, "--ray", cluster, "--recipe", "paper"]
    small = setting(
        *("encoder.weights=none", "encoder.input_size=64", "encoder.epochs=2", "reranker.epochs=2"),
        "evaluate.known_items=10",
    )
    done = mrcg(*words, *small, *setting("graph.neighbours=20", "ingest.file_bytes=65536"), timeout=900)
    assert done.returncode == 0, done.stderr
    spec, _ = read_spec(encoder_of(store))
    assert (spec.backbone, spec.head, spec.embedding_dim) == ("vgg16", "paper", 1000)
    assert len(losses(encoder_of(store))) == 2
    (version,) = store.versions("reports")
    report = Report.model_validate_json(store.artefact("reports", version).read_bytes("report.json"))
    assert report.encoder_epochs == 2 and report.queries > 20 and 0 < report.reranked.map <= 1


def reproduced(systems, *words):
    """The rows of ``mrcg reproduce`` for some systems, checked."""
    done = mrcg("reproduce", *words, "--systems", ",".join(systems), "--json", timeout=900)
    assert done.returncode == 0, done.stderr
    found = Reproduction.model_validate_json(done.stdout)
    assert [row.system for row in found.rows] == list(systems)
    for row in found.rows:
        assert row.trial.protocol == "dedup"
        assert [epoch.epoch for epoch in row.trial.epochs] == [0, 1]
        assert all(0 < epoch.map_full <= epoch.map <= 1 for epoch in row.trial.epochs)
    return found


def test_a_system_is_reproduced_and_what_is_there_is_not_done_again(source, cluster, tmp_path):
    store, systems = Store(str(tmp_path / "store")), ["mrcg"]
    words = ["--source", source, "--store", store.url, "--ray", cluster, "--protocol", "dedup", *TINY]
    first = mrcg("reproduce", *words, "--systems", ",".join(systems), timeout=900)
    assert first.returncode == 0, first.stderr
    assert "MRCG: train-reranker" in first.stderr
    assert len(store.versions("encoders")) == 1
    made = {kind: store.versions(kind) for kind in ("encoders", "embeddings", "rerankers")}
    found = reproduced(systems, *words)
    tables, _, said = first.stdout.strip().rpartition("\n")
    assert tables.strip() == reproduction_markdown(found).strip()
    page = Path(said.removeprefix("retrieval panels and node distributions of MRCG: "))
    assert page.is_file() and (page.parent / "retrieval.png").is_file()
    assert found.rows[0].report in page.parts
    assert {kind: store.versions(kind) for kind in made} == made


@pytest.mark.platform
def test_all_six_systems_are_reproduced(source, cluster, tmp_path):
    store = Store(str(tmp_path / "store"))
    words = ["--source", source, "--store", store.url, "--ray", cluster, "--protocol", "dedup", *TINY]
    two = reproduced(["siamese", "mrcg"], *words)
    found = reproduced(SYSTEMS, *words)
    # One short training for each margin, one of the Siamese network for all its five rows, one of MRCG.
    assert len(store.versions("encoders")) == len(MARGINS) + 2
    assert len(store.versions("embeddings")) == 2
    assert len(store.versions("rerankers")) == 5
    assert all(len(snapshots_of(store.artefact("rerankers", one))) == 2 for one in store.versions("rerankers"))
    # What the first call said of its two systems is what the second says of them.
    assert tuple(row for row in found.rows if row.system in ("siamese", "mrcg")) == two.rows


HELD_OUT = setting("split.held_out_fraction=0.3")


@pytest.mark.platform
def test_two_workers_learn_from_graphs_as_one(source, cluster, tmp_path):
    store = Store(str(tmp_path / "store"))
    words = ["--source", source, "--store", store.url, "--ray", cluster, *TINY, *HELD_OUT]
    done = mrcg("run", *words, "--json", timeout=900)
    assert done.returncode == 0, done.stderr
    stages = {stage["stage"]: stage for stage in json.loads(done.stdout)["stages"]}
    assert stages["build-graphs"]["counts"]["held_out"] > 0
    # Without dropout they go down the same curve.
    shutil.copytree(store.root, tmp_path / "copy")
    plain = setting("reranker.graphs=held_out", "reranker.dropout=0", "reranker.drop_edge=0")
    curves = []
    for url, workers in ((store.url, 1), (str(tmp_path / "copy"), 2)):
        more = ["--store", url, *plain, *setting(f"compute.reranker_workers={workers}")]
        done = mrcg("train-reranker", *words, *more, "--json")
        assert done.returncode == 0, done.stderr
        made = json.loads(done.stdout)["stages"][0]
        assert made["counts"]["epochs"] == 2
        curves.append(losses(Store(url).artefact("rerankers", made["version"])))
    assert np.allclose(*curves, rtol=1e-4)


def test_graphs_of_held_out_scans_want_scans_held_out(source, tmp_path):
    store = Store(str(tmp_path / "store"))
    done = mrcg("run", "--source", source, "--store", store.url, *TINY, *setting("reranker.graphs=held_out"))
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].endswith("set split.held_out_fraction above 0")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--systems", "siamese,magic"], "--systems: unknown system 'magic'; choose from siamese, siamese+chebnet"),
        (["--set", "reranker.epochs=0"], "set encoder.epochs and reranker.epochs above 0"),
        (["--protocol", "none"], "split.protocol = 'none' is not allowed"),
    ],
)
def test_what_cannot_be_reproduced_is_said_at_once(words, message, source, tmp_path):
    done = mrcg("reproduce", "--source", source, "--store", str(tmp_path / "store"), *TINY, *words)
    assert done.returncode == 2
    assert message in done.stderr
