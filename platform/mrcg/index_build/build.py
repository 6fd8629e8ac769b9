"""An index, made piece by piece: drawn up, trained, filled shard by shard, measured (DESIGN §2).

A piece that is done leaves a note, so a build that was killed does only what is missing.
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

from mrcg.corpus.embeddings import EmbeddingRows
from mrcg.errors import TrainingError
from mrcg.execution.executor import Executor, Progress
from mrcg.hashing import seed_of
from mrcg.index import faiss_backend
from mrcg.index.distances import BLOCK, Rows, widen
from mrcg.index.layout import FACTS, TRAINED, IndexFacts, part_files
from mrcg.index_build.build_plan import BuildPlan, IndexWork, plan_build
from mrcg.index_build.compaction import measure_again
from mrcg.index_build.recall import DEPTH, Examine, settle
from mrcg.index_build.sizing import examine_bytes, measured_costs
from mrcg.storage.manifest import FileEntry
from mrcg.storage.store import Store


@dataclass(frozen=True)
class BuiltIndex:
    """A finished index: its facts, its files, and seconds of each step."""

    facts: IndexFacts
    files: tuple[FileEntry, ...]
    seconds: dict[str, float]


def build_index(work: IndexWork, executor: Executor, progress: Progress) -> BuiltIndex:
    """Build an index, or grow an earlier one.

    Raises:
        TrainingError: the wanted recall cannot be reached.
        SettingsError: no index fits into ``index.node_bytes``.
    """
    clock = _Clock()
    progress(0, 0, "planning")
    build_plan = next(executor.map(plan_build, [work]))
    clock.lap("plan")
    entries = list(build_plan.entries)
    if build_plan.train:
        progress(0, 0, f"training {build_plan.facts.shape.lists} cells")
        entries += next(executor.map(_Train(work), [build_plan], gpus_each=int(work.gpu)))
    clock.lap("train")
    for done, files in enumerate(executor.map(_FillPart(work, build_plan), build_plan.new, build_plan.bytes_each), 1):
        entries += files
        progress(done, len(build_plan.new), "parts filled")
    clock.lap("fill")
    facts = _measured(work, build_plan, executor, progress)
    clock.lap("recall")
    data = facts.model_dump_json(indent=1).encode()
    Store(work.store).write_bytes(f"{work.output}/{FACTS}", data)
    return BuiltIndex(facts, (*entries, FileEntry.of(FACTS, data)), clock.laps)


def _measured(work: IndexWork, build_plan: BuildPlan, executor: Executor, progress: Progress) -> IndexFacts:
    facts, live = build_plan.facts, sum(part.live for part in build_plan.facts.parts)
    if facts.shape.kind == "flat":
        return facts.model_copy(update={"recall": 1.0, "measured": live})  # it is the exact search
    if facts.measured and not measure_again(facts.measured, live):
        return facts
    progress(len(build_plan.new), len(build_plan.new), "measuring recall")
    rng = np.random.default_rng(seed_of(work.seed, "recall"))
    rows = np.sort(rng.permutation(live)[: work.settings.recall_sample])
    queries = _floats(build_plan.embeddings(work), rows, facts.shape.dim)
    shards = sorted({part.shard for part in facts.parts})
    held = [[part.rows for part in facts.parts if part.shard == shard] for shard in shards]
    need = max(examine_bytes(facts.shape, sum(rows), measured_costs(), len(rows)) for rows in held)
    examined = list(executor.map(Examine(work, facts, queries), shards, need))
    nprobe_or_ef, recall = settle(examined, facts.shape, work.settings.min_recall)
    if recall < work.settings.min_recall:
        raise TrainingError(
            f"recall@{DEPTH} of {facts.shape.kind} is {recall:.3f} at effort {nprobe_or_ef}, index.min_recall asks for "
            f"{work.settings.min_recall}: take another index.kind (flat is exact), or lower it"
        )
    return facts.model_copy(update={"nprobe_or_ef": nprobe_or_ef, "recall": recall, "measured": live})


@dataclass(frozen=True)
class _Train:
    """Learns the cells that all parts share."""

    work: IndexWork

    def __call__(self, build_plan: BuildPlan) -> list[FileEntry]:
        work, store, shape = self.work, Store(self.work.store), build_plan.facts.shape
        if store.exists(note := work.note("trained")):
            return _noted(store, note)
        faiss_backend.use_threads(work.threads)
        seed = seed_of(work.seed, "index")
        embeddings = build_plan.embeddings(work)
        count = min(len(embeddings), max(faiss_backend.OPQ_VECTORS, shape.lists * faiss_backend.TRAIN_PER_LIST))
        sample = np.sort(np.random.default_rng(seed).permutation(len(embeddings))[:count])
        trained = faiss_backend.train(shape, _floats(embeddings, sample, shape.dim), seed, work.gpu)
        with store.writer(f"{work.output}/{TRAINED}") as sink:
            faiss_backend.write_index(trained, sink)
        return _note(store, note, [sink.entry(TRAINED)])


@dataclass(frozen=True)
class _FillPart:
    """Fills one part: vectors stream from the embeddings into its two files."""

    work: IndexWork
    build_plan: BuildPlan

    def __call__(self, name: str) -> list[FileEntry]:
        work, store, shape = self.work, Store(self.work.store), self.build_plan.facts.shape
        if store.exists(note := work.note(name)):
            return _noted(store, note)
        faiss_backend.use_threads(work.threads or (1 if shape.kind == "hnsw" else 0))
        rows: Rows = np.load(io.BytesIO(store.read_bytes(work.rows(name))), allow_pickle=False)
        files = part_files(name)
        index = None
        if shape.kind == "hnsw":
            index = faiss_backend.new_index(shape, seed_of(work.seed, name))
        elif shape.trained:
            index = faiss_backend.read_index(work.on_disk(TRAINED))
        entries = []
        with ThreadPoolExecutor(1) as beside, ExitStack() as writing:
            vectors = writing.enter_context(store.writer(f"{work.output}/{files.vectors}"))
            for block in self.build_plan.embeddings(work).blocks(rows, BLOCK):
                # Hashed and written while FAISS adds it.
                written = beside.submit(vectors.write, np.ascontiguousarray(block))
                if index is not None:
                    index.add(widen(block))
                written.result()
            # The disk has them while the lists are written.
            closed = beside.submit(writing.pop_all().close)
            if index is not None:
                with store.writer(f"{work.output}/{files.index}") as sink:
                    faiss_backend.write_index(index, sink)
                entries.append(sink.entry(files.index))
            closed.result()
        return _note(store, note, [vectors.entry(files.vectors), *entries])


def _floats(embeddings: EmbeddingRows, rows: Rows, dim: int) -> npt.NDArray[np.float32]:
    """(n, d) vectors of rising rows, each once, as float32."""
    out, start = np.empty((len(rows), dim), dtype=np.float32), 0
    for block in embeddings.blocks(rows, 2**14):
        widen(block, out[start : start + len(block)])
        start += len(block)
    return out


def _note(store: Store, place: str, entries: list[FileEntry]) -> list[FileEntry]:
    store.write_bytes(place, json.dumps([entry.model_dump() for entry in entries]).encode())
    return entries


def _noted(store: Store, place: str) -> list[FileEntry]:
    return [FileEntry.model_validate(one) for one in store.read_json(place)]


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now
