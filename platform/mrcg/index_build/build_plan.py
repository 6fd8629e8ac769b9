"""What has to be done to make an index: which parts stay, which are filled and with what (DESIGN §2)."""

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

from mrcg.config.settings import IndexSettings
from mrcg.corpus.embeddings import EmbeddingRows, FileRows, files_of, open_embeddings
from mrcg.corpus.reader import read_scans
from mrcg.index import faiss_backend
from mrcg.index.distances import Rows
from mrcg.index.layout import (
    TRAINED,
    IndexFacts,
    PartFacts,
    Shape,
    allot,
    part_files,
    part_name,
    scans_of_sites,
    shards_of,
)
from mrcg.index.part import map_vectors
from mrcg.index.sharded_index import read_facts
from mrcg.index_build.compaction import Fill, Kept, grow, in_pieces, train_again
from mrcg.index_build.sizing import build_bytes, index_bytes, measured_costs, most_rows, plan_index
from mrcg.storage import schemas
from mrcg.storage.manifest import FileEntry
from mrcg.storage.store import Artefact, Store, spill

#: Lists that are written at once: each waits for the disk more than it writes.
_WRITERS = 4
#: What an index keeps of a scan.
_KNOWN = [name for name in schemas.ROWS.names if name != "row"]


@dataclass(frozen=True)
class IndexWork:
    """Places and rules of one index: what every piece of the work knows.

    Attributes:
        store: URL.
        corpus, embeddings: versions that it is made of.
        base: version of the index that it grows from, None for a first one.
        attempt: folder of the attempt.
        settings, seed: of the recipe.
        threads: of one piece, 0 takes what there is.
        purge: nothing that the corpus has no more may stay in any file.
        gpu: cells are learned on a GPU.
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

    def note(self, name: str) -> str:
        """File that says that a piece is done."""
        return f"{self.attempt}/work/{name}.json"

    def rows(self, name: str) -> str:
        """File of the gallery rows that a part is filled with."""
        return f"{self.attempt}/work/{name}.npy"

    def on_disk(self, name: str) -> Path:
        """A file of the index in the making: its own, or one that stays with an earlier version."""
        store = Store(self.store)
        own = f"{self.output}/{name}"
        if not store.exists(own):
            assert self.base is not None, f"{name} was not written"
            return store.artefact("indexes", self.base).on_disk(name)
        if store.local:
            return Path(store.path(own))
        target = spill() / own.replace("/", "-")
        if not target.exists():
            store.fetch(own, target)
        return target


@dataclass(frozen=True)
class BuildPlan:
    """An index that is planned but not filled.

    Attributes:
        facts: as they will stand in ``index.json`` but for recall and effort; parts: those that stay, then new ones.
        new: names of the parts that are filled.
        train: whether cells are learned anew.
        files: of embeddings.
        entries: of the files that are there already: tables of rows, and what stays with an earlier version.
        bytes_each: memory of the task that fills the largest part.
    """

    facts: IndexFacts
    new: tuple[str, ...]
    train: bool
    files: tuple[FileRows, ...]
    entries: tuple[FileEntry, ...]
    bytes_each: int

    def embeddings(self, work: IndexWork) -> EmbeddingRows:
        """The embeddings, by row."""
        return open_embeddings(work.store, work.embeddings, self.files)


def plan_build(work: IndexWork) -> BuildPlan:
    """Plan an index and write its tables of rows and the lists that its parts are filled from."""
    store = Store(work.store)
    scans = read_scans(store.artefact("corpus", work.corpus), [*_KNOWN, "file"])
    dim = int(store.manifest("embeddings", work.embeddings).counts["dim"])
    base = None if work.base is None else store.artefact("indexes", work.base)
    old = None if base is None else read_facts(base)
    if old is not None and (train_again(old.trained_on, scans.num_rows) or old.shape.dim != dim):
        base = old = None
    if old is not None and base is not None and work.purge and _memorised(base, old, scans["image_id"]):
        base = old = None
    if old is None or base is None:
        start = _first(work.settings, scans, dim)
        parts: list[Kept] = []
    else:
        start = old.model_copy(update={"generation": old.generation + 1})
        parts = _present(base, old, scans["image_id"])
    kept, fills = grow(parts, _fresh(parts, start, scans), work.settings.compact_above, work.purge)
    most = min(work.settings.part_bytes // index_bytes(start.shape), most_rows(start.shape, work.settings.node_bytes))
    named = _named([piece for fill in fills for piece in in_pieces(fill, max(1, int(most)))], start.generation)
    rows_of = {one.facts.name: one.rows for one in kept} | {name: fill.rows for name, fill in named.items()}
    entries = _write_rows(work, store, base, facts_table(scans), rows_of)
    with ThreadPoolExecutor(_WRITERS) as writers:
        list(writers.map(lambda name: _write_list(store, work.rows(name), named[name].rows), named))
    facts = start.model_copy(
        update={
            "parts": tuple(
                [_counted(one.facts, one.rows) for one in kept]
                + [PartFacts(shard=f.shard, name=n, rows=len(f.rows), live=len(f.rows)) for n, f in named.items()]
            )
        }
    )
    if base is not None:
        staying = [name for one in kept for name in _stays(facts.shape, one.facts.name)]
        entries += [base.shared(name) for name in (*staying, *((TRAINED,) if facts.shape.trained else ()))]
    largest = max((len(fill.rows) for fill in named.values()), default=0)
    return BuildPlan(
        facts=facts,
        new=tuple(named),
        train=facts.shape.trained and base is None,
        files=files_of(scans),
        entries=tuple(entries),
        bytes_each=build_bytes(facts.shape, largest, measured_costs()),
    )


def facts_table(scans: pa.Table) -> pa.Table:
    """Table of ``schemas.ROWS`` of a whole corpus, in its order."""
    columns = {name: scans[name] for name in _KNOWN}
    columns["row"] = pa.array(np.arange(scans.num_rows, dtype=np.int64))
    return pa.table({name: columns[name] for name in schemas.ROWS.names}, schema=schemas.ROWS)


def _first(settings: IndexSettings, scans: pa.Table, dim: int) -> IndexFacts:
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
        sites=allot(scans_of_sites(scans["site"]), plan.shards),
        parts=(),
    )


def _present(base: Artefact, old: IndexFacts, image_ids: pa.ChunkedArray) -> list[Kept]:
    """The parts of an earlier version with the present rows of what they hold."""
    known, found = image_ids.combine_chunks(), []
    for facts in old.parts:
        table = pa.ipc.open_file(pa.memory_map(str(base.on_disk(part_files(facts.name).rows)))).read_all()
        found.append(Kept(facts, places_of(known, table)))
    return found


def places_of(known: pa.Array, table: pa.Table) -> Rows:
    """(n,) where the scans of a part's table stand among all that are known now, -1 where they are gone."""
    before: Rows = pc.fill_null(table["row"], -1).to_numpy()
    image_ids = table["image_id"].combine_chunks()
    if before.max(initial=-1) < len(known) and known.take(pa.array(before, mask=before < 0)).equals(image_ids):
        return before  # most often nothing has moved, and to look each up takes ten times as long
    places = pc.fill_null(pc.index_in(image_ids, value_set=known, skip_nulls=True), -1)
    return np.asarray(places.to_numpy(zero_copy_only=False), dtype=np.int64)


def _memorised(base: Artefact, old: IndexFacts, image_ids: pa.ChunkedArray) -> bool:
    """Whether a cell is the very vector of a scan that is gone: a cell that training gave one vector alone."""
    if not old.shape.trained:
        return False
    trained = faiss_backend.read_index(base.on_disk(TRAINED))
    for part in _present(base, old, image_ids):
        vectors = map_vectors(base.on_disk(part_files(part.facts.name).vectors), part.facts.rows, old.shape.dim)
        gone = vectors[np.flatnonzero(part.rows < 0)].astype(np.float32)
        if len(gone) and faiss_backend.is_a_cell(trained, old.shape, gone).any():
            return True
    return False


def _fresh(parts: Sequence[Kept], facts: IndexFacts, scans: pa.Table) -> dict[int, Rows]:
    """Rows that no part holds, by their shard."""
    missing = np.ones(scans.num_rows, dtype=bool)
    for part in parts:
        missing[part.rows[part.rows >= 0]] = False
    rows = np.flatnonzero(missing)
    some = take_rows(scans.select(["image_id", "site"]), rows)
    shards = shards_of(some["image_id"], some["site"], facts.sites, facts.shards)
    return {shard: rows[shards == shard] for shard in np.unique(shards).tolist()}


def _named(pieces: Sequence[Fill], generation: int) -> dict[str, Fill]:
    numbers: Counter[int] = Counter()
    named = {}
    for piece in pieces:
        named[part_name(piece.shard, generation, numbers[piece.shard])] = piece
        numbers[piece.shard] += 1
    return named


def _counted(facts: PartFacts, rows: Rows) -> PartFacts:
    return facts.model_copy(update={"live": int((rows >= 0).sum())})


def _stays(shape: Shape, part: str) -> tuple[str, ...]:
    files = part_files(part)
    return (files.vectors,) if shape.kind == "flat" else (files.index, files.vectors)


def _write_list(store: Store, place: str, rows: Rows) -> None:
    sink = io.BytesIO()
    np.save(sink, rows, allow_pickle=False)
    store.write_bytes(place, sink.getvalue())


def _write_rows(
    work: IndexWork, store: Store, base: Artefact | None, table: pa.Table, rows_of: Mapping[str, Rows]
) -> list[FileEntry]:
    entries: list[FileEntry] = []
    with ThreadPoolExecutor(1) as beside:
        waiting: Future[None] | None = None
        for part, rows in rows_of.items():
            name = part_files(part).rows
            data = schemas.to_ipc(take_rows(table, rows).combine_chunks())
            if waiting is not None:  # one is written while the next is made, and no more are in memory
                waiting.result()
                waiting = None
            entry = FileEntry.of(name, data)
            if base is not None and name in base.names(name) and base.entry(name).sha256 == entry.sha256:
                entry = base.shared(name)
            else:
                waiting = beside.submit(store.write_bytes, f"{work.output}/{name}", data)
            entries.append(entry)
        if waiting is not None:
            waiting.result()
    return entries


def take_rows(table: pa.Table, rows: Rows) -> pa.Table:
    """Rows of a table, all null where a row is -1."""
    if len(rows) and rows[0] >= 0 and (np.diff(rows) == 1).all():
        return table.slice(rows[0], len(rows))  # nothing is copied
    return table.take(pa.array(rows, mask=rows < 0))
