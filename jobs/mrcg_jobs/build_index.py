"""Build the index: one Ray task a shard, then recall against exact search."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from mrcg import schemas
from mrcg.config import IndexSettings
from mrcg.corpus import Corpus, embeddings_of
from mrcg.errors import TrainingError
from mrcg.hashing import seed_of
from mrcg.index.shard import Shard, build_faiss, shard_files
from mrcg.index.sharded import ShardedIndex, exact_search, recall_at, shard_of
from mrcg.store import Store
from mrcg_jobs.job import Job, Outcome, entries, write_output
from mrcg_jobs.runtime import own_errors

RECALL_DEPTH = 50


@ray.remote(num_cpus=1)
def _build_shard(
    store_url: str, inputs: dict[str, str], output: str, number: int, settings: IndexSettings, seed: int
) -> list[dict[str, Any]]:
    store = Store(store_url)
    corpus = Corpus(store.artefact("corpus", inputs["corpus"]))
    ids, sites = corpus.scans["image_id"].to_pylist(), corpus.scans["site"].to_pylist()
    mine = np.array(
        [r for r in range(len(ids)) if shard_of(sites[r], ids[r], settings.shards) == number], dtype=np.int64
    )
    vectors = embeddings_of(store.artefact("embeddings", inputs["embeddings"]))[mine]
    rows = pa.table(
        {
            "image_id": [ids[r] for r in mine.tolist()],
            "row": mine,
            "label": [corpus.labels[r] for r in mine.tolist()],
            "group_id": [corpus.groups[r] for r in mine.tolist()],
        },
        schema=schemas.ROWS,
    )
    shard = Shard(build_faiss(vectors, settings, seed_of(seed, "index", number)), vectors, rows)
    return [write_output(store, output, name, data) for name, data in shard.to_files(number).items()]


@ray.remote(num_cpus=1)
def _measure_recall(
    store_url: str, embeddings: str, output: str, settings: IndexSettings, seed: int
) -> tuple[float, list[int]]:
    store = Store(store_url)
    shards = [
        Shard.read(*(store.read_bytes(f"{output}/{name}") for name in shard_files(n))) for n in range(settings.shards)
    ]
    index = ShardedIndex(shards, settings.probes)
    vectors = embeddings_of(store.artefact("embeddings", embeddings))
    draw = np.random.default_rng(seed_of(seed, "recall"))
    queries = vectors[draw.permutation(len(vectors))[: settings.recall_sample]]
    found = index.search(queries, RECALL_DEPTH).rows_qk
    return recall_at(found, exact_search(queries, vectors, RECALL_DEPTH)), [len(s.rows) for s in shards]


def run(job: Job) -> Outcome:
    """Make the index over all scans of the corpus.

    Raises:
        TrainingError: recall@50 is below ``index.min_recall``.
    """
    settings, inputs = job.config.index, dict(job.step.inputs)
    with own_errors():
        tasks = [
            _build_shard.remote(job.store.url, inputs, job.attempt.output, number, settings, job.config.seed)
            for number in range(settings.shards)
        ]
        rows: list[dict[str, Any]] = []
        waiting = tasks
        while waiting:
            ready, waiting = ray.wait(waiting)
            rows += [row for part in ray.get(ready) for row in part]
            job.progress(len(tasks) - len(waiting), len(tasks), "shards built")
        job.progress(len(tasks), len(tasks), "measuring recall")
        recall, sizes = ray.get(
            _measure_recall.remote(job.store.url, inputs["embeddings"], job.attempt.output, settings, job.config.seed)
        )
    if recall < settings.min_recall:
        raise TrainingError(
            f"recall@50 is {recall:.3f}, index.min_recall asks for {settings.min_recall}: "
            "raise index.probes or take index.kind=flat"
        )
    facts = {"shards": settings.shards, "probes": settings.probes, "kind": settings.kind}
    files = [*entries(rows), job.attempt.write("index.json", json.dumps(facts, sort_keys=True).encode())]
    return Outcome({"images": sum(sizes), "shard_sizes": sizes, "recall_at_50": recall}, files)
