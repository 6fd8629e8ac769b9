"""Query graphs of a whole gallery: every shard is asked for all queries, block by block, and the answers are merged.

No query is looked up alone, and no process holds more than one shard and one block of queries (DESIGN §2, §3).
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mrcg.corpus.embeddings import files_of, open_embeddings
from mrcg.corpus.reader import read_scans
from mrcg.corpus.splits import Fold, Split
from mrcg.execution.executor import Executor, Progress
from mrcg.index import faiss_backend
from mrcg.index.distances import Neighbours, Rows, merge
from mrcg.index.sharded_index import ShardedIndex, read_facts
from mrcg.reranker.graph_table import graph_table
from mrcg.reranker.neighbours import codes_of, largest_group, without_own_group
from mrcg.storage import schemas
from mrcg.storage.manifest import FileEntry
from mrcg.storage.store import Store

#: Queries that are looked up together.
BLOCK = 4096


@dataclass(frozen=True)
class GraphWork:
    """Places and rules: what every piece of the work knows.

    Attributes:
        store: URL.
        corpus, splits, embeddings, index: versions.
        attempt: folder of the attempt.
        neighbours: of each query.
        fold: the queries are what the encoder of a fold left out, and the gallery what it saw.
        parts: of the queries; None takes all.
        seed: of the run.
        threads: of one piece, 0 takes what there is.
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

    def answer(self, shard: int, block: int) -> str:
        """File of what one shard answered to one block."""
        return f"{self.attempt}/work/{shard:05d}-{block:05d}.npz"


@dataclass(frozen=True)
class GraphQueries:
    """Queries, part by part, and the gallery that they are looked up in.

    ``rows`` are rising within a part; ``extra`` neighbours are fetched so that n remain without the own group.
    """

    parts: tuple[str, ...]
    rows: Rows
    part_of: np.ndarray[tuple[int], np.dtype[np.int8]]
    gallery: np.ndarray[tuple[int], np.dtype[np.bool_]]
    groups: Rows
    labels: Rows
    extra: int
    shards: tuple[int, ...]
    index_bytes: int

    @property
    def blocks(self) -> list[int]:
        """First query of each block."""
        return list(range(0, len(self.rows), BLOCK))


def build_graphs(work: GraphWork, executor: Executor, progress: Progress) -> tuple[dict[str, int], list[FileEntry]]:
    """The neighbour lists of all queries.

    Returns:
        How many queries each part has, and the files.
    """
    progress(0, 0, "gathering the queries")
    asked = next(executor.map(gather, [work]))
    total = len(asked.shards) + 1
    for done, _ in enumerate(executor.map(_Ask(work, asked), asked.shards, asked.index_bytes), 1):
        progress(done, total, "shards searched")
    entries = list(executor.map(_Merge(work, asked), range(len(asked.blocks))))
    progress(total, total, "neighbour lists written")
    counts = {part: int((asked.part_of == number).sum()) for number, part in enumerate(asked.parts)}
    return counts, entries


def gather(work: GraphWork) -> GraphQueries:
    """Whose neighbours are looked up, and among whom."""
    store = Store(work.store)
    scans = read_scans(store.artefact("corpus", work.corpus), ["group_id", "label"])
    groups = scans["group_id"].to_pylist()
    lookups = Split(store.artefact("splits", work.splits)).lookups(groups, work.fold, work.seed)
    codes = codes_of(groups)
    parts = tuple(part for part in lookups.queries if work.parts is None or part in work.parts)
    rows = [np.flatnonzero(lookups.queries[part]) for part in parts]
    # A test query may find its own near-duplicates: the protocol decides what is in the gallery.
    excluding = np.concatenate(
        [np.empty(0, np.int64), *(r for r, part in zip(rows, parts, strict=True) if part != "test")]
    )
    index = store.artefact("indexes", work.index)
    facts = read_facts(index)
    return GraphQueries(
        parts=parts,
        rows=np.concatenate([np.empty(0, np.int64), *rows]),
        part_of=np.repeat(np.arange(len(parts), dtype=np.int8), [len(one) for one in rows]),
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
class _Ask:
    """Asks one shard for the neighbours of all queries."""

    work: GraphWork
    asked: GraphQueries

    def __call__(self, shard: int) -> None:
        work, asked, store = self.work, self.asked, Store(self.work.store)
        faiss_backend.use_threads(work.threads)
        waiting = [n for n in range(len(asked.blocks)) if not store.exists(work.answer(shard, n))]
        if not waiting:
            return
        index = ShardedIndex.open(store.artefact("indexes", work.index), shards=[shard])
        scans = read_scans(store.artefact("corpus", work.corpus), ["file"])
        embeddings = open_embeddings(work.store, work.embeddings, files_of(scans))
        gallery = asked.gallery[: len(index)]
        for number in waiting:
            start = asked.blocks[number]
            queries = embeddings.take(asked.rows[start : start + BLOCK])
            near = index.search(queries, work.neighbours + asked.extra, gallery)
            sink = io.BytesIO()
            np.savez(sink, rows=near.rows_qk.astype(np.int32), distances=near.distances_qk)
            store.write_bytes(work.answer(shard, number), sink.getvalue())


@dataclass(frozen=True)
class _Merge:
    """Merges what the shards answered to one block, and writes its lists."""

    work: GraphWork
    asked: GraphQueries

    def __call__(self, block: int) -> FileEntry:
        work, asked, store = self.work, self.asked, Store(self.work.store)
        wide, answers = work.neighbours + asked.extra, []
        for shard in asked.shards:
            with np.load(io.BytesIO(store.read_bytes(work.answer(shard, block)))) as answer:
                answers.append(Neighbours(answer["rows"].astype(np.int64), answer["distances"]))
        near = merge(answers, wide)
        start = asked.blocks[block]
        rows, parts = asked.rows[start : start + BLOCK], asked.part_of[start : start + BLOCK]
        tables = []
        for number, part in enumerate(asked.parts):
            here = parts == number
            some = Neighbours(near.rows_qk[here], near.distances_qk[here])
            if part == "test":
                some = Neighbours(some.rows_qk[:, : work.neighbours], some.distances_qk[:, : work.neighbours])
            else:
                some = without_own_group(some, rows[here], asked.groups, work.neighbours)
            tables.append(graph_table(rows[here], part, some, asked.labels))
        name = f"graphs/{block:05d}.parquet"
        data = schemas.to_parquet(pa.concat_tables(tables))
        store.write_bytes(f"{work.attempt}/output/{name}", data)
        return FileEntry.of(name, data)
