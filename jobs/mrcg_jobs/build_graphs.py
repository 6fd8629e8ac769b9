"""Build the query graphs: batches of queries over actors that hold the index."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from mrcg import schemas
from mrcg.corpus import Corpus, Lookups, Split
from mrcg.errors import MrcgError, TrainingError
from mrcg.graph.neighbours import neighbour_lists
from mrcg.graph.table import graph_table
from mrcg.index.sharded import ShardedIndex
from mrcg.splits import Fold
from mrcg.store import Store
from mrcg_jobs.job import Job, Outcome, entries, write_output
from mrcg_jobs.runtime import carry, each_row, own_errors

QUERIES_PER_FILE = 512


class _GraphBlock:
    """Finds the neighbours of a block of queries among the training part.

    In a fold the queries are the scans that its encoder did not see, and the gallery those that it did.
    """

    def __init__(
        self, store: str, inputs: dict[str, str], output: str, neighbours: int, fold: Fold | None, seed: int
    ) -> None:
        self._store = Store(store)
        self._inputs = inputs
        self._output = output
        self._neighbours = neighbours
        self._fold = fold
        self._seed = seed

    # Opened with the first block: an error in an actor's constructor comes out of Ray without its type.
    @cached_property
    def _index(self) -> ShardedIndex:
        return ShardedIndex.open(self._store.artefact("indexes", self._inputs["indexes"]))

    @cached_property
    def _lookups(self) -> Lookups:
        split = Split(self._store.artefact("splits", self._inputs["splits"]))
        return split.lookups(self._index.groups, self._fold, self._seed)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._find(row)
        except MrcgError as error:
            return carry(error)

    def _find(self, row: dict[str, Any]) -> dict[str, Any]:
        queries = np.asarray(row["queries"], dtype=np.int64)
        tables = []
        for part, members in self._lookups.queries.items():
            own = queries[members[queries]]
            # A test query may find its own near-duplicates: the protocol decides what is in the gallery.
            near = neighbour_lists(self._index, own, self._lookups.gallery, self._neighbours, part != "test")
            tables.append(graph_table(own, part, near, self._index.labels))
        table = pa.concat_tables(tables)
        name = f"graphs/{int(row['number']):05d}.parquet"
        entry = write_output(self._store, self._output, name, schemas.to_parquet(table))
        counts = {part: table.num_rows for part, table in zip(self._lookups.queries, tables, strict=True)}
        return {**entry, **counts}


def run(job: Job) -> Outcome:
    """Make the neighbour lists of all labelled queries.

    Raises:
        TrainingError: there are none.
    """
    config, fold = job.config, job.step.fold
    parts = Split(job.inputs["splits"]).lookups(Corpus(job.inputs["corpus"]).groups, fold, config.seed).queries
    queries = np.flatnonzero(np.logical_or.reduce(list(parts.values())))
    if not len(queries):
        raise TrainingError(
            f"{job.step.name} has no scans to look up: bring more labelled scans or lower reranker.folds"
        )
    blocks = [
        {"number": number, "queries": queries[start : start + QUERIES_PER_FILE].tolist()}
        for number, start in enumerate(range(0, len(queries), QUERIES_PER_FILE))
    ]
    job.progress(0, 0, "loading the index")
    dataset = ray.data.from_items(blocks, override_num_blocks=len(blocks)).map(
        _GraphBlock,
        fn_constructor_args=(
            job.store.url,
            dict(job.step.inputs),
            job.attempt.output,
            config.graph.neighbours,
            fold,
            config.seed,
        ),
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=1,
    )
    rows, done = [], 0
    with own_errors():
        for row in each_row(dataset):
            rows.append(row)
            done += sum(row[part] for part in parts)
            job.progress(done, len(queries), "queries")
    counts = {part: int(sum(row[part] for row in rows)) for part in parts}
    return Outcome(counts, entries(rows))
