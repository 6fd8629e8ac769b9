"""The inputs of a report, made by library calls; scores come from a stub, not from a model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from tests.factories import index_of, publish, publish_corpus, tiny_config
from tests.references import neighbour_lists

from mrcg.config.settings import Config
from mrcg.corpus.reader import Corpus
from mrcg.corpus.sources import open_source, survey
from mrcg.corpus.splits import SPLITS, Split, make_splits
from mrcg.pipeline.plan import plan
from mrcg.reranker.graph_table import graph_table
from mrcg.reranker.neighbours import codes_of
from mrcg.storage import schemas
from mrcg.storage.store import Artefact, Store

FACTS = {"recall": 1.0, "epochs": 3.0}
DIM = 16


def make_inputs(
    store: Store,
    scans: Path,
    config: Config,
    noise: float = 1.5,
    parts: tuple[str, ...] = ("train", "validation", "test"),
) -> dict[str, Artefact]:
    """Publish corpus, splits, embeddings (noise around a centre of each class), graphs and two histories."""
    steps = {step.stage.kind: step for step in plan(config, survey(open_source(str(scans))), "none")}

    def put(kind, files, counts=None):
        return store.artefact(kind, publish(store, steps[kind], files, counts).version)

    inputs = {"corpus": store.artefact("corpus", publish_corpus(store, steps["corpus"], scans, config).version)}
    corpus = Corpus(inputs["corpus"])
    table = make_splits(corpus.scans, config.split, config.seed)
    inputs["splits"] = put("splits", {SPLITS: schemas.to_parquet(table)}, {"protocol": config.split.protocol})
    epochs = [{"epoch": e, "loss": 1 / (1 + e), "triplet": 0.1, "validation_map": 1 - 0.5 / (1 + e)} for e in range(6)]
    history = {"history.json": json.dumps({"best_epoch": 4, "epochs": epochs}).encode()}
    inputs["encoders"] = put("encoders", history)
    vectors = embeddings_around_classes(corpus, noise)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIM)
    rows = pa.table({"image_id": corpus.scans["image_id"], "embedding": column}, schema=schemas.embeddings(DIM))
    inputs["embeddings"] = put(
        "embeddings", {"embeddings/00000.arrow": schemas.to_ipc(rows)}, {"fingerprint": "ab", "dim": DIM}
    )
    split, index = (
        Split(inputs["splits"]),
        index_of(vectors, corpus.scans["image_id"].to_pylist(), corpus.labels, corpus.groups, 2),
    )
    put("indexes", {"index.json": b"{}"})
    tables = []
    lookups = split.lookups(corpus.groups, None, config.seed)
    for part, which in lookups.queries.items():
        queries = np.flatnonzero(which if part in parts else which & False)
        near = neighbour_lists(index, queries, lookups.gallery, config.graph.neighbours, part != "test")
        tables.append(graph_table(queries, part, near, codes_of(corpus.labels)))
    inputs["graphs"] = put("graphs", {"graphs/00000.parquet": schemas.to_parquet(pa.concat_tables(tables))})
    inputs["rerankers"] = put("rerankers", history)
    return inputs


def embeddings_around_classes(corpus: Corpus, noise: float) -> np.ndarray:
    draws = np.random.default_rng(1)
    centres = draws.normal(size=(len(corpus.classes), DIM))
    own = np.array([corpus.classes.index(label) for label in corpus.labels])
    return (centres[own] + noise * draws.normal(size=(len(own), DIM))).astype(np.float16)


def score_by_distance(reranker, graphs, vectors_nd, batch_size, device):
    """Stub for a model: near hits get high scores, with noise; the scores are overconfident."""
    distances = np.where(graphs.neighbours_qn >= 0, graphs.distances_qn, 0.0)
    noise = np.random.default_rng(2).normal(size=distances.shape)
    median = np.median(distances) if distances.size else 0.0
    logits = 0.3 * (median - distances) + noise + 3.0 * (graphs.relevant_qn - 0.5)
    scores = 1 / (1 + np.exp(-2.0 * logits))
    return np.where(graphs.neighbours_qn >= 0, scores, -1.0).astype(np.float32)


@pytest.fixture
def scored_by_distance(monkeypatch):
    """``evaluate`` without a reranker."""
    stub = SimpleNamespace(reranker=None, device="cpu")

    def open_stub(artefact, *, encoder_fingerprint):
        assert encoder_fingerprint == "ab", "the fingerprint comes from the embeddings"
        return stub

    monkeypatch.setattr("mrcg.evaluation.scored_lists.Scorer.open", open_stub)
    monkeypatch.setattr("mrcg.evaluation.scored_lists.score_graphs", score_by_distance)


@pytest.fixture(scope="session")
def inputs(scans, tmp_path_factory):
    """The inputs of a report on 96 phantoms, protocol ``paper``."""
    return make_inputs(Store(str(tmp_path_factory.mktemp("measured") / "store")), scans, tiny_config())


@pytest.fixture(scope="session")
def dedup_inputs(scans, tmp_path_factory):
    """The same inputs under protocol ``dedup``, without validation graphs."""
    store = Store(str(tmp_path_factory.mktemp("dedup") / "store"))
    return make_inputs(store, scans, tiny_config("split.protocol=dedup"), parts=("train", "test"))
