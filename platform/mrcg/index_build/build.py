"""Builds an index in tasks: plan, train, build each part, measure recall (docs/index.md#building-and-updating).

Training and each part write a marker file when they are done, so a build that was killed does not repeat them.
"""

from __future__ import annotations

import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrcg.arrays import RowNumbers
from mrcg.corpus.embeddings import EmbeddingRows
from mrcg.errors import TrainingError
from mrcg.execution.executor import Executor, Progress
from mrcg.hashing import seed_of
from mrcg.index import faiss_backend
from mrcg.index.distances import BLOCK, widen
from mrcg.index.layout import FACTS, TRAINED, IndexFacts, part_files
from mrcg.index_build.build_plan import BuildPlan, IndexWork, plan_build
from mrcg.index_build.compaction import recall_outdated
from mrcg.index_build.recall import DEPTH, SearchShard, choose_nprobe_or_ef
from mrcg.index_build.sizing import measured_costs, recall_bytes
from mrcg.storage.manifest import FileEntry
from mrcg.storage.store import Store


@dataclass(frozen=True)
class BuiltIndex:
    """A finished index: its facts, its files, and the seconds that each step took."""

    facts: IndexFacts
    files: tuple[FileEntry, ...]
    seconds: dict[str, float]


def build_index(work: IndexWork, executor: Executor, progress: Progress) -> BuiltIndex:
    """Build an index, or update an earlier one.

    Raises:
        TrainingError: the index does not reach ``index.min_recall``.
        SettingsError: no index fits into ``index.node_bytes``.
    """
    clock = _Clock()
    progress(0, 0, "planning")
    build_plan = next(executor.map(plan_build, [work]))
    clock.lap("plan")
    entries = list(build_plan.entries)
    if build_plan.train:
        progress(0, 0, f"training {build_plan.facts.shape.lists} coarse cells")
        entries += next(executor.map(_Train(work), [build_plan], gpus_each=int(work.gpu)))
    clock.lap("train")
    for done, files in enumerate(executor.map(_BuildPart(work, build_plan), build_plan.new, build_plan.bytes_each), 1):
        entries += files
        progress(done, len(build_plan.new), "parts built")
    clock.lap("fill")
    facts = _with_recall(work, build_plan, executor, progress)
    clock.lap("recall")
    data = facts.model_dump_json(indent=1).encode()
    Store(work.store).write_bytes(f"{work.output}/{FACTS}", data)
    return BuiltIndex(facts, (*entries, FileEntry.of(FACTS, data)), clock.laps)


def _with_recall(work: IndexWork, build_plan: BuildPlan, executor: Executor, progress: Progress) -> IndexFacts:
    """Return the facts with nprobe or ef_search and the recall, measured unless the earlier measurement still holds."""
    facts, live = build_plan.facts, sum(part.live for part in build_plan.facts.parts)
    if facts.shape.kind == "flat":
        return facts.model_copy(update={"recall": 1.0, "measured": live})  # an exact search
    if facts.measured and not recall_outdated(facts.measured, live):
        return facts
    progress(len(build_plan.new), len(build_plan.new), "measuring recall")
    rng = np.random.default_rng(seed_of(work.seed, "recall"))
    rows = np.sort(rng.permutation(live)[: work.settings.recall_sample])
    queries = _floats(build_plan.embeddings(work), rows, facts.shape.dim)
    shards = sorted({part.shard for part in facts.parts})
    part_rows = [[part.rows for part in facts.parts if part.shard == shard] for shard in shards]
    bytes_each = max(recall_bytes(facts.shape, sum(rows), measured_costs(), len(rows)) for rows in part_rows)
    searches = list(executor.map(SearchShard(work, facts, queries), shards, bytes_each))
    nprobe_or_ef, recall = choose_nprobe_or_ef(searches, facts.shape, work.settings.min_recall)
    if recall < work.settings.min_recall:
        parameter = "ef_search" if facts.shape.kind == "hnsw" else "nprobe"
        raise TrainingError(
            f"recall@{DEPTH} of {facts.shape.kind} is {recall:.3f} at {parameter} {nprobe_or_ef}, "
            f"below index.min_recall {work.settings.min_recall}: choose another index.kind (flat is exact), "
            "or lower index.min_recall"
        )
    return facts.model_copy(update={"nprobe_or_ef": nprobe_or_ef, "recall": recall, "measured": live})


@dataclass(frozen=True)
class _Train:
    """Trains the coarse cells that all parts share, and writes the empty trained index."""

    work: IndexWork

    def __call__(self, build_plan: BuildPlan) -> list[FileEntry]:
        work, store, shape = self.work, Store(self.work.store), build_plan.facts.shape
        if store.exists(marker := work.marker("trained")):
            return _read_marker(store, marker)
        faiss_backend.use_threads(work.threads)
        seed = seed_of(work.seed, "index")
        embeddings = build_plan.embeddings(work)
        count = min(len(embeddings), max(faiss_backend.OPQ_VECTORS, shape.lists * faiss_backend.TRAIN_PER_LIST))
        sample = np.sort(np.random.default_rng(seed).permutation(len(embeddings))[:count])
        trained = faiss_backend.train(shape, _floats(embeddings, sample, shape.dim), seed, work.gpu)
        with store.writer(f"{work.output}/{TRAINED}") as sink:
            faiss_backend.write_index(trained, sink)
        return _write_marker(store, marker, [sink.entry(TRAINED)])


@dataclass(frozen=True)
class _BuildPart:
    """Builds one part: streams its vectors from the embeddings into its two files."""

    work: IndexWork
    build_plan: BuildPlan

    def __call__(self, name: str) -> list[FileEntry]:
        work, store, shape = self.work, Store(self.work.store), self.build_plan.facts.shape
        if store.exists(marker := work.marker(name)):
            return _read_marker(store, marker)
        faiss_backend.use_threads(work.threads or (1 if shape.kind == "hnsw" else 0))
        rows: RowNumbers = np.load(io.BytesIO(store.read_bytes(work.rows(name))), allow_pickle=False)
        files = part_files(name)
        index = None
        if shape.kind == "hnsw":
            index = faiss_backend.new_index(shape, seed_of(work.seed, name))
        elif shape.trained:
            index = faiss_backend.read_index(work.on_disk(TRAINED))
        entries = []
        with ThreadPoolExecutor(1) as writer, ExitStack() as open_files:
            vectors = open_files.enter_context(store.writer(f"{work.output}/{files.vectors}"))
            for block in self.build_plan.embeddings(work).blocks(rows, BLOCK):
                # The block is hashed and written while FAISS adds it.
                written = writer.submit(vectors.write, np.ascontiguousarray(block))
                if index is not None:
                    index.add(widen(block))
                written.result()
            # The vectors are flushed to disk while the FAISS index is written.
            closed = writer.submit(open_files.pop_all().close)
            if index is not None:
                with store.writer(f"{work.output}/{files.index}") as sink:
                    faiss_backend.write_index(index, sink)
                entries.append(sink.entry(files.index))
            closed.result()
        return _write_marker(store, marker, [vectors.entry(files.vectors), *entries])


def _floats(embeddings: EmbeddingRows, rows: RowNumbers, dim: int) -> npt.NDArray[np.float32]:
    """Return the (n, d) vectors of strictly ascending rows as float32."""
    out, start = np.empty((len(rows), dim), dtype=np.float32), 0
    for block in embeddings.blocks(rows, 2**14):
        widen(block, out[start : start + len(block)])
        start += len(block)
    return out


def _write_marker(store: Store, path: str, entries: list[FileEntry]) -> list[FileEntry]:
    store.write_bytes(path, json.dumps([entry.model_dump() for entry in entries]).encode())
    return entries


def _read_marker(store: Store, path: str) -> list[FileEntry]:
    return [FileEntry.model_validate(entry) for entry in store.read_json(path)]


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now
