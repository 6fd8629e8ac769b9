"""Plans the build of an index: the parts to keep and the parts to build (docs/index.md#building-and-updating)."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mrcg.arrays import RowNumbers
from mrcg.config.settings import IndexSettings
from mrcg.corpus.embeddings import EmbeddingRows, FileRows, files_of, open_embeddings
from mrcg.corpus.reader import read_scans
from mrcg.index import faiss_backend
from mrcg.index.layout import (
    TRAINED,
    IndexFacts,
    PartFacts,
    Shape,
    allocate_shards,
    count_scans_by_site,
    part_files,
    part_name,
    shards_of,
)
from mrcg.index.part import map_vectors
from mrcg.index.sharded_index import read_facts
from mrcg.index_build.compaction import KeptPart, NewPart, plan_parts, retraining_due, split_part
from mrcg.index_build.sizing import build_bytes, index_bytes, max_part_rows, measured_costs, plan_index
from mrcg.stages.counts import EmbeddingCounts
from mrcg.storage import schemas
from mrcg.storage.cache import temp_dir
from mrcg.storage.manifest import FileEntry
from mrcg.storage.store import Artefact, Store

#: Row lists written at a time: each write mostly waits for the disk.
_WRITERS = 4
#: Columns that an index takes from the table of scans.
_SCAN_COLUMNS = [name for name in schemas.ROWS.names if name != "row"]


@dataclass(frozen=True)
class IndexWork:
    """Inputs, settings and output folder of one index build: what every task of it needs.

    Attributes:
        store: URL of the store.
        corpus, embeddings: versions that the index is built from.
        base: version of the index to update, None for a first one.
        attempt: folder of the attempt.
        settings, seed: of the recipe.
        threads: of each task; 0 takes all that are available.
        purge: leave nothing in any file of a scan that the corpus no longer has.
        gpu: train coarse cells on a GPU.
    """

    store: str
    corpus: str
    embeddings: str
    base: str | None
    attempt: str
    settings: IndexSettings
    seed: int
    threads: int = 0
    purge: bool = False
    gpu: bool = False

    @property
    def output(self) -> str:
        """Folder of the files that become the version."""
        return f"{self.attempt}/output"

    def marker(self, name: str) -> str:
        """Return the path of the file that marks a task as done."""
        return f"{self.attempt}/work/{name}.json"

    def rows(self, name: str) -> str:
        """Return the path of the list of gallery rows of a part."""
        return f"{self.attempt}/work/{name}.npy"

    def on_disk(self, name: str) -> Path:
        """Return the local path of a file of this build: written by it, or shared with the version it updates."""
        store = Store(self.store)
        path = f"{self.output}/{name}"
        if not store.exists(path):
            assert self.base is not None, f"{name} was not written"
            return store.artefact("indexes", self.base).on_disk(name)
        if store.local:
            return Path(store.path(path))
        target = temp_dir() / path.replace("/", "-")
        if not target.exists():
            store.fetch(path, target)
        return target


@dataclass(frozen=True)
class BuildPlan:
    """An index that is planned but not built.

    Attributes:
        facts: what ``index.json`` will say, except for recall and effort; kept parts come first, then new ones.
        new: names of the parts to build.
        train: whether coarse cells are trained.
        files: of embeddings.
        entries: of files that already exist: tables of rows, and files shared with the version that is updated.
        bytes_each: memory of the task that builds the largest part.
    """

    facts: IndexFacts
    new: tuple[str, ...]
    train: bool
    files: tuple[FileRows, ...]
    entries: tuple[FileEntry, ...]
    bytes_each: int

    def embeddings(self, work: IndexWork) -> EmbeddingRows:
        """Open the embeddings, addressed by gallery row."""
        return open_embeddings(work.store, work.embeddings, self.files)


def plan_build(work: IndexWork) -> BuildPlan:
    """Plan an index, and write its tables of rows and the list of rows of each part to build."""
    store = Store(work.store)
    scans = read_scans(store.artefact("corpus", work.corpus), [*_SCAN_COLUMNS, "file"])
    dim = store.manifest("embeddings", work.embeddings).counts_as(EmbeddingCounts).dim
    base = None if work.base is None else store.artefact("indexes", work.base)
    old = None if base is None else read_facts(base)
    if old is not None and (retraining_due(old.trained_on, scans.num_rows) or old.shape.dim != dim):
        base = old = None
    if old is not None and base is not None and work.purge and _deleted_is_centroid(base, old, scans["image_id"]):
        base = old = None
    if old is None or base is None:
        start = _initial_facts(work.settings, scans, dim)
        old_parts: list[KeptPart] = []
    else:
        start = old.model_copy(update={"generation": old.generation + 1})
        old_parts = _current_parts(base, old, scans["image_id"])
    new_rows = _new_rows(old_parts, start, scans)
    kept, new = plan_parts(old_parts, new_rows, work.settings.compact_above, work.purge)
    node_rows = max_part_rows(start.shape, work.settings.node_bytes)
    max_rows = max(1, int(min(work.settings.part_bytes // index_bytes(start.shape), node_rows)))
    named = _named([split for part in new for split in split_part(part, max_rows)], start.generation)
    rows_of = {part.facts.name: part.rows for part in kept} | {name: part.rows for name, part in named.items()}
    entries = _write_rows(work, store, base, rows_table(scans), rows_of)
    with ThreadPoolExecutor(_WRITERS) as writers:
        list(writers.map(lambda name: _write_list(store, work.rows(name), named[name].rows), named))
    facts = start.model_copy(
        update={
            "parts": tuple(
                [_with_live(part.facts, part.rows) for part in kept]
                + [PartFacts(shard=p.shard, name=n, rows=len(p.rows), live=len(p.rows)) for n, p in named.items()]
            )
        }
    )
    if base is not None:
        shared = [name for part in kept for name in _shared_files(facts.shape, part.facts.name)]
        entries += [base.reference(name) for name in (*shared, *((TRAINED,) if facts.shape.trained else ()))]
    largest = max((len(part.rows) for part in named.values()), default=0)
    return BuildPlan(
        facts=facts,
        new=tuple(named),
        train=facts.shape.trained and base is None,
        files=files_of(scans),
        entries=tuple(entries),
        bytes_each=build_bytes(facts.shape, largest, measured_costs()),
    )


def rows_table(scans: pa.Table) -> pa.Table:
    """Return the table of ``schemas.ROWS`` of all scans of a corpus, in its order."""
    columns = {name: scans[name] for name in _SCAN_COLUMNS}
    columns["row"] = pa.array(np.arange(scans.num_rows, dtype=np.int64))
    return pa.table({name: columns[name] for name in schemas.ROWS.names}, schema=schemas.ROWS)


def _initial_facts(settings: IndexSettings, scans: pa.Table, dim: int) -> IndexFacts:
    kind = None if settings.kind == "auto" else settings.kind
    plan = plan_index(scans.num_rows, dim, settings.node_bytes, settings.min_recall, kind, settings.shards)
    return IndexFacts(
        shape=plan.shape,
        shards=plan.shards,
        nprobe_or_ef=settings.effort or plan.nprobe_or_ef,
        recall=0.0,
        measured=0,
        trained_on=scans.num_rows,
        generation=0,
        sites=allocate_shards(count_scans_by_site(scans["site"]), plan.shards),
        parts=(),
    )


def _current_parts(base: Artefact, old: IndexFacts, image_ids: pa.ChunkedArray) -> list[KeptPart]:
    """Return the parts of an earlier version with the current gallery rows of their rows."""
    current_ids, parts = image_ids.combine_chunks(), []
    for facts in old.parts:
        table = pa.ipc.open_file(pa.memory_map(str(base.on_disk(part_files(facts.name).rows)))).read_all()
        parts.append(KeptPart(facts, current_rows(current_ids, table)))
    return parts


def current_rows(image_ids: pa.Array, table: pa.Table) -> RowNumbers:
    """Return the (n,) current gallery row of each row of a part's table, -1 where the scan is deleted.

    Args:
        image_ids: of all current scans, in the order of gallery rows.
        table: of ``schemas.ROWS``, with the gallery rows of an earlier version.
    """
    before: RowNumbers = pc.fill_null(table["row"], -1).to_numpy()
    part_ids = table["image_id"].combine_chunks()
    if before.max(initial=-1) < len(image_ids) and image_ids.take(pa.array(before, mask=before < 0)).equals(part_ids):
        return before  # usually no row has moved, and looking up each id takes ten times as long
    rows = pc.fill_null(pc.index_in(part_ids, value_set=image_ids, skip_nulls=True), -1)
    return np.asarray(rows.to_numpy(zero_copy_only=False), dtype=np.int64)


def _deleted_is_centroid(base: Artefact, old: IndexFacts, image_ids: pa.ChunkedArray) -> bool:
    """Return whether a centroid equals the vector of a deleted scan: training gave that vector a cell of its own."""
    if not old.shape.trained:
        return False
    trained = faiss_backend.read_index(base.on_disk(TRAINED))
    for part in _current_parts(base, old, image_ids):
        vectors = map_vectors(base.on_disk(part_files(part.facts.name).vectors), part.facts.rows, old.shape.dim)
        deleted = vectors[np.flatnonzero(part.rows < 0)].astype(np.float32)
        if len(deleted) and faiss_backend.is_centroid(trained, old.shape, deleted).any():
            return True
    return False


def _new_rows(parts: Sequence[KeptPart], facts: IndexFacts, scans: pa.Table) -> dict[int, RowNumbers]:
    """Return the rows that no part holds, by shard."""
    missing = np.ones(scans.num_rows, dtype=bool)
    for part in parts:
        missing[part.rows[part.rows >= 0]] = False
    rows = np.flatnonzero(missing)
    new = take_rows(scans.select(["image_id", "site"]), rows)
    shards = shards_of(new["image_id"], new["site"], facts.sites, facts.shards)
    return {shard: rows[shards == shard] for shard in np.unique(shards).tolist()}


def _named(parts: Sequence[NewPart], generation: int) -> dict[str, NewPart]:
    numbers: Counter[int] = Counter()
    named = {}
    for part in parts:
        named[part_name(part.shard, generation, numbers[part.shard])] = part
        numbers[part.shard] += 1
    return named


def _with_live(facts: PartFacts, rows: RowNumbers) -> PartFacts:
    return facts.model_copy(update={"live": int((rows >= 0).sum())})


def _shared_files(shape: Shape, part: str) -> tuple[str, ...]:
    """Return the files of a kept part that stay with the version that wrote them."""
    files = part_files(part)
    return (files.vectors,) if shape.kind == "flat" else (files.index, files.vectors)


def _write_list(store: Store, path: str, rows: RowNumbers) -> None:
    sink = io.BytesIO()
    np.save(sink, rows, allow_pickle=False)
    store.write_bytes(path, sink.getvalue())


def _write_rows(
    work: IndexWork, store: Store, base: Artefact | None, table: pa.Table, rows_of: Mapping[str, RowNumbers]
) -> list[FileEntry]:
    """Write the table of rows of each part, except where the version that is updated has the same bytes."""
    entries: list[FileEntry] = []
    with ThreadPoolExecutor(1) as writer:
        pending: Future[None] | None = None
        for part, rows in rows_of.items():
            name = part_files(part).rows
            data = schemas.to_ipc(take_rows(table, rows).combine_chunks())
            if pending is not None:  # one table is written while the next is prepared; no more are in memory
                pending.result()
                pending = None
            entry = FileEntry.of(name, data)
            if base is not None and name in base.names(name) and base.entry(name).sha256 == entry.sha256:
                entry = base.reference(name)
            else:
                pending = writer.submit(store.write_bytes, f"{work.output}/{name}", data)
            entries.append(entry)
        if pending is not None:
            pending.result()
    return entries


def take_rows(table: pa.Table, rows: RowNumbers) -> pa.Table:
    """Return rows of a table, all null where a row is -1."""
    if len(rows) and rows[0] >= 0 and (np.diff(rows) == 1).all():
        return table.slice(rows[0], len(rows))  # without a copy
    return table.take(pa.array(rows, mask=rows < 0))
