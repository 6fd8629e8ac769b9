"""The inputs of a report, made by library calls: drawn embeddings, and a small reranker that was trained on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tests.factories import index_of, publish, publish_corpus, tiny_config
from tests.references import neighbour_lists

from mrcg.arrays import Fp16Vectors
from mrcg.config.settings import Config
from mrcg.corpus.reader import Corpus
from mrcg.corpus.sources import open_source, survey
from mrcg.corpus.splits import SPLITS, Split, make_splits
from mrcg.pipeline.plan import plan
from mrcg.reranker.graph_table import graph_table, read_graphs
from mrcg.reranker.neighbours import codes_of
from mrcg.reranker.spec import HISTORY, SPEC, WEIGHTS
from mrcg.reranker.trainer import RerankerTrainer, TrainingGraphs, new_reranker
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
    inputs["rerankers"] = put("rerankers", trained_reranker(config, inputs["graphs"], vectors))
    return inputs


def trained_reranker(config: Config, graphs: Artefact, vectors: Fp16Vectors) -> dict[str, bytes]:
    """Files of a reranker after six epochs on the training graphs."""
    settings = config.reranker.model_copy(update={"epochs": 6, "learning_rate": 0.01})
    reranker = new_reranker(settings, DIM, config.seed, "ab")
    tables = TrainingGraphs(read_graphs(graphs, "train"), read_graphs(graphs, "validation"), vectors)
    trainer = RerankerTrainer(reranker, settings, config.seed, tables)
    while not trainer.finished:
        trainer.run_epoch(lambda done, total: None)
    history = {"best_epoch": trainer.state.best_epoch, "epochs": trainer.state.history}
    return {
        WEIGHTS: trainer.state.best_weights(),
        SPEC: reranker.spec.model_dump_json().encode(),
        HISTORY: json.dumps(history).encode(),
    }


def embeddings_around_classes(corpus: Corpus, noise: float) -> np.ndarray:
    draws = np.random.default_rng(1)
    centres = draws.normal(size=(len(corpus.classes), DIM))
    own = np.array([corpus.classes.index(label) for label in corpus.labels])
    return (centres[own] + noise * draws.normal(size=(len(own), DIM))).astype(np.float16)


@pytest.fixture(scope="session")
def inputs(scans, tmp_path_factory):
    """The inputs of a report on 96 phantoms, protocol ``paper``."""
    return make_inputs(Store(str(tmp_path_factory.mktemp("measured") / "store")), scans, tiny_config())


@pytest.fixture(scope="session")
def dedup_inputs(scans, tmp_path_factory):
    """The same inputs under protocol ``dedup``, without validation graphs."""
    store = Store(str(tmp_path_factory.mktemp("dedup") / "store"))
    return make_inputs(store, scans, tiny_config("split.protocol=dedup"), parts=("train", "test"))
