"""Build query graphs for all scans of a corpus: search each shard for all queries in blocks, then merge the hits.

Queries are searched in blocks rather than one by one, and no process holds more than one shard and one block of
queries. See docs/method.md#query-graph.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mrcg.arrays import RowNumbers
from mrcg.corpus.embeddings import files_of, open_embeddings
from mrcg.corpus.reader import read_scans
from mrcg.corpus.splits import Fold, Split
from mrcg.execution.executor import Executor, Progress
from mrcg.index import faiss_backend
from mrcg.index.distances import Neighbours, merge
from mrcg.index.sharded_index import ShardedIndex, read_facts
from mrcg.reranker.graph_table import graph_table
from mrcg.reranker.neighbours import codes_of, largest_group, without_own_group
from mrcg.stages.counts import GraphCounts
from mrcg.storage import schemas
from mrcg.storage.manifest import FileEntry
from mrcg.storage.store import Store

#: Queries that are searched together.
BLOCK = 4096


@dataclass(frozen=True)
class GraphWork:
    """Locations and settings that every task needs.

    Attributes:
        store: URL of the store.
        corpus, splits, embeddings, index: versions.
        attempt: folder of the attempt.
        neighbours: neighbours of each query.
        fold: with a fold, the queries are the scans that its encoder was trained without, and the gallery those that it
            was trained on.
        parts: parts of the split whose queries are searched; None searches all.
        seed: seed of the run.
        threads: search threads of one task; 0 uses all that are available.
    """

    store: str
    corpus: str
    splits: str
    embeddings: str
    index: str
    attempt: str
    neighbours: int
    fold: Fold | None
    parts: tuple[str, ...] | None
    seed: int
    threads: int = 0

    def hits_file(self, shard: int, block: int) -> str:
        """Path of the hits of one shard for one block of queries."""
        return f"{self.attempt}/work/{shard:05d}-{block:05d}.npz"


@dataclass(frozen=True)
class GraphQueries:
    """Queries, part by part, and the gallery that they are searched in.

    Attributes:
        parts: parts of the split that have queries.
        rows: (q,) corpus rows of the queries, part by part, ascending within a part.
        part_numbers: (q,) position in ``parts`` of each query's part.
        gallery: (rows,) True for scans that may be neighbours.
        groups: (rows,) a number for the group of each scan.
        labels: (rows,) a number for the label of each scan, -1 without a label.
        extra: neighbours to fetch beyond n, so that n remain once a query's own group is removed.
        shards: numbers of the index's shards.
        index_bytes: estimated memory for one shard: twice the float32 vectors of the largest one.
    """

    parts: tuple[str, ...]
    rows: RowNumbers
    part_numbers: np.ndarray[tuple[int], np.dtype[np.int8]]
    gallery: np.ndarray[tuple[int], np.dtype[np.bool_]]
    groups: RowNumbers
    labels: RowNumbers
    extra: int
    shards: tuple[int, ...]
    index_bytes: int

    @property
    def blocks(self) -> list[int]:
        """Position of the first query of each block."""
        return list(range(0, len(self.rows), BLOCK))


def build_graphs(work: GraphWork, executor: Executor, progress: Progress) -> tuple[GraphCounts, list[FileEntry]]:
    """Write the neighbour lists of all queries.

    Returns:
        The number of queries of each part, and the files.
    """
    progress(0, 0, "collecting the queries")
    queries = next(executor.map(collect_queries, [work]))
    total = len(queries.shards) + 1
    for done, _ in enumerate(executor.map(_SearchShard(work, queries), queries.shards, queries.index_bytes), 1):
        progress(done, total, "shards searched")
    entries = list(executor.map(_MergeBlock(work, queries), range(len(queries.blocks))))
    progress(total, total, "neighbour lists written")
    counts = {part: int((queries.part_numbers == number).sum()) for number, part in enumerate(queries.parts)}
    return GraphCounts.model_validate(counts), entries


def collect_queries(work: GraphWork) -> GraphQueries:
    """Return the queries and the gallery that they are searched in."""
    store = Store(work.store)
    scans = read_scans(store.artefact("corpus", work.corpus), ["group_id", "label"])
    groups = scans["group_id"].to_pylist()
    lookups = Split(store.artefact("splits", work.splits)).lookups(groups, work.fold, work.seed)
    codes = codes_of(groups)
    parts = tuple(part for part in lookups.queries if work.parts is None or part in work.parts)
    rows = [np.flatnonzero(lookups.queries[part]) for part in parts]
    # Test queries may have their own group as neighbours: the protocol decides whether that is in the gallery.
    excluding = np.concatenate(
        [np.empty(0, np.int64), *(r for r, part in zip(rows, parts, strict=True) if part != "test")]
    )
    index = store.artefact("indexes", work.index)
    facts = read_facts(index)
    return GraphQueries(
        parts=parts,
        rows=np.concatenate([np.empty(0, np.int64), *rows]),
        part_numbers=np.repeat(np.arange(len(parts), dtype=np.int8), [len(part_rows) for part_rows in rows]),
        gallery=lookups.gallery,
        groups=codes,
        labels=codes_of(scans["label"].to_pylist()),
        extra=largest_group(codes, excluding, lookups.gallery),
        shards=tuple(sorted({part.shard for part in facts.parts})),
        index_bytes=2
        * max((sum(p.rows for p in facts.parts if p.shard == s) for s in {p.shard for p in facts.parts}), default=0)
        * 4
        * facts.shape.dim,
    )


@dataclass(frozen=True)
class _SearchShard:
    """Searches one shard for the neighbours of all queries; skips blocks that already have hits (a resumed attempt)."""

    work: GraphWork
    queries: GraphQueries

    def __call__(self, shard: int) -> None:
        work, queries, store = self.work, self.queries, Store(self.work.store)
        faiss_backend.use_threads(work.threads)
        pending = [n for n in range(len(queries.blocks)) if not store.exists(work.hits_file(shard, n))]
        if not pending:
            return
        index = ShardedIndex.open(store.artefact("indexes", work.index), shards=[shard])
        scans = read_scans(store.artefact("corpus", work.corpus), ["file"])
        embeddings = open_embeddings(work.store, work.embeddings, files_of(scans))
        gallery = queries.gallery[: len(index)]
        for block in pending:
            start = queries.blocks[block]
            vectors = embeddings.take(queries.rows[start : start + BLOCK])
            hits = index.search(vectors, work.neighbours + queries.extra, gallery)
            sink = io.BytesIO()
            np.savez(sink, rows=hits.rows_qk.astype(np.int32), distances=hits.distances_qk)
            store.write_bytes(work.hits_file(shard, block), sink.getvalue())


@dataclass(frozen=True)
class _MergeBlock:
    """Merges the hits of all shards for one block of queries, and writes its neighbour lists."""

    work: GraphWork
    queries: GraphQueries

    def __call__(self, block: int) -> FileEntry:
        work, queries, store = self.work, self.queries, Store(self.work.store)
        shard_hits = []
        for shard in queries.shards:
            with np.load(io.BytesIO(store.read_bytes(work.hits_file(shard, block)))) as hits:
                shard_hits.append(Neighbours(hits["rows"].astype(np.int64), hits["distances"]))
        merged = merge(shard_hits, work.neighbours + queries.extra)
        start = queries.blocks[block]
        rows, part_numbers = queries.rows[start : start + BLOCK], queries.part_numbers[start : start + BLOCK]
        tables = []
        for number, part in enumerate(queries.parts):
            of_part = part_numbers == number
            near = Neighbours(merged.rows_qk[of_part], merged.distances_qk[of_part])
            if part == "test":
                near = Neighbours(near.rows_qk[:, : work.neighbours], near.distances_qk[:, : work.neighbours])
            else:
                near = without_own_group(near, rows[of_part], queries.groups, work.neighbours)
            tables.append(graph_table(rows[of_part], part, near, queries.labels))
        name = f"graphs/{block:05d}.parquet"
        data = schemas.to_parquet(pa.concat_tables(tables))
        store.write_bytes(f"{work.attempt}/output/{name}", data)
        return FileEntry.of(name, data)
