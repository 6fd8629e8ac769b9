"""Helpers that make things: a tiny release by library calls, a run of the command line."""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from PIL import Image

from mrcg.config.loading import load_config
from mrcg.config.settings import Config, IngestSettings
from mrcg.corpus.assembly import AssembledCorpus, assemble_corpus
from mrcg.corpus.embeddings import files_of
from mrcg.corpus.ingestion import ImagesWriter, Rules, Segment, ingest_files
from mrcg.corpus.reader import Corpus, read_scans
from mrcg.corpus.sources import SourceFile, open_source, survey
from mrcg.corpus.splits import SPLITS, make_splits
from mrcg.encoder.appearance import FACTS, TENSORS, Appearance, facts_of
from mrcg.encoder.spec import HISTORY, SPEC, WEIGHTS, fingerprint, spec_bytes
from mrcg.evaluation.evaluate import evaluate
from mrcg.evaluation.known_items import search_known_items
from mrcg.execution.executor import LocalExecutor, silent
from mrcg.imaging.readers import read
from mrcg.index import faiss_backend
from mrcg.index.layout import shards_of
from mrcg.index.part import Part
from mrcg.index.sharded_index import ShardedIndex
from mrcg.index_build.build import build_index
from mrcg.index_build.build_plan import IndexWork
from mrcg.index_build.sizing import initial_nprobe_or_ef, shape_of
from mrcg.metrics.order import HitOrder, OrderChoice
from mrcg.metrics.report import REPORT, Report
from mrcg.pipeline.plan import Step, open_inputs, plan
from mrcg.releases.release import Release, promote
from mrcg.reranker.graph_build import GraphWork, build_graphs
from mrcg.stages.counts import Counts
from mrcg.storage import schemas
from mrcg.storage.attempts import begin
from mrcg.storage.filesystem import HashingFile
from mrcg.storage.manifest import FileEntry, Manifest
from mrcg.storage.store import Artefact, Store
from mrcg_jobs.stages.embed import FitAppearance
from tests.manifests import make_manifest

#: Overrides that make every stage take seconds.
OVERRIDES = (
    "ingest.file_bytes=65536", "index.shards=2", "encoder.epochs=2", "encoder.input_size=32", "encoder.embedding_dim=16",
    "encoder.batch_size=16", "reranker.epochs=2", "reranker.hidden=8", "graph.neighbours=20", "evaluate.picture_queries=2",
    "evaluate.known_items=20",
)  # fmt: skip
#: The same for the command line; two workers train the encoder.
TINY = ("--recipe", "demo", *(word for one in OVERRIDES for word in ("--set", one)))
#: The same; two workers train the encoder.
TWO_WORKERS = (*TINY, "--set", "compute.encoder_workers=2")
MRCG = str(Path(sys.executable).parent / "mrcg")


def add_bad_files(source: Path) -> None:
    """What a real folder holds beside scans; and a class with one image."""
    good = sorted(source.rglob("*.png"))[0]
    bad = source / "glioma_tumor"
    jpeg = io.BytesIO()
    Image.open(good).save(jpeg, "JPEG")
    (bad / "truncated.jpg").write_bytes(jpeg.getvalue()[:-500])
    (bad / "empty.png").write_bytes(b"")
    (bad / "text.png").write_text("these are words")
    (bad / "bomb.png").write_bytes(bomb(20_000))
    Image.new("L", (1, 1)).save(bad / "dot.png")
    (source / "rare_tumor").mkdir()
    (source / "rare_tumor" / "only.png").write_bytes(good.read_bytes())


#: Reason of each bad file.
BAD_FILES = {
    "glioma_tumor/truncated.jpg": "truncated",
    "glioma_tumor/empty.png": "empty",
    "glioma_tumor/text.png": "not_an_image",
    "glioma_tumor/bomb.png": "too_many_pixels",
    "glioma_tumor/dot.png": "too_small",
}


def bomb(side: int) -> bytes:
    """A PNG that states side x side pixels in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(side + 1) * 50)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def tiny_config(*more: str) -> Config:
    """The demo's recipe made tiny."""
    return load_config("demo", [*OVERRIDES, *more])


def mrcg(*words: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    return subprocess.run([MRCG, *words], capture_output=True, text=True, timeout=timeout, check=False)


def publish(
    store: Store, step: Step, files: dict[str, bytes], counts: dict[str, Any] | Counts | None = None
) -> Manifest:
    """Publish files as a version."""
    with begin(store, step.stage.kind, step.version) as attempt:
        entries = [attempt.write(name, data) for name, data in files.items()]
        manifest = make_manifest(step.stage.kind, step.version, step.settings, step.inputs, counts or {}, entries)
        return attempt.publish(manifest)


class Files:
    """Outputs of an ingestion, in memory."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[HashingFile]:
        buffer = io.BytesIO()
        yield HashingFile(buffer)
        self.content[name] = buffer.getvalue()

    def write(self, name: str, data: bytes) -> FileEntry:
        self.content[name] = data
        return FileEntry.of(name, data)


def rules_of(
    settings: IngestSettings | None = None, pseudonyms: Any = None, suppressed: Any = (), generation: int = 0
) -> Rules:
    """Rules for a test."""
    return Rules(settings or IngestSettings(), pseudonyms, frozenset(suppressed), generation)


def ingest(files: list[SourceFile], read_file: Any, rules: Rules, out: Files | None = None, **more: Any) -> Segment:
    """Ingest files in this process."""
    with ImagesWriter((out or Files()).open, "images/g000-00000", rules.settings) as images:
        return ingest_files(files, read_file, lambda data: read(data, rules.settings), rules, images, **more)


def join(segments: list[Segment], rules: Rules, base: Any = None, kept: Any = None) -> tuple[AssembledCorpus, Files]:
    """Join segments in this process."""
    out = Files()
    parts = [(segment.scans, segment.quarantine, segment.files) for segment in segments]
    kept = np.empty(0, np.uint64) if kept is None else kept
    return assemble_corpus(parts, base, kept, rules, out.write), out


def publish_corpus(
    store: Store, step: Step, folder: Path, config: Config, pseudonyms: Any = None, suppressed: Any = ()
) -> Manifest:
    """A corpus by library calls, without Ray."""
    source, rules = open_source(str(folder)), rules_of(config.ingest, pseudonyms, suppressed)
    pixels = Files()
    segment = ingest(list(source.walk()), source.read, rules, pixels)
    joined, tables = join([segment], rules)
    counts = {**joined.counts.stated(), "files": survey(source).files}
    return publish(store, step, pixels.content | tables.content, counts)


def make_release(store: Store, scans: Path, config: Config | None = None, order: HitOrder | None = None) -> Release:
    """All stages by library calls, with untrained models: what is tested here is not how well they rank.

    Their scores gain nothing, so the ANN order is served, unless another ``order`` is given.
    """
    config = config or tiny_config()
    source = survey(open_source(str(scans)))
    steps = {step.stage.kind: step for step in plan(config, source, "none")}
    publish_corpus(store, steps["corpus"], scans, config)
    table = read_scans(_open(store, steps["corpus"]))
    splits = schemas.to_parquet(make_splits(table, config.split, config.seed))
    publish(store, steps["splits"], {SPLITS: splits}, {"protocol": config.split.protocol})
    _models(store, config, steps)
    inputs = open_inputs(store, steps["reports"])
    known = search_known_items(inputs, config.evaluate.known_items)
    files = evaluate(inputs, config.evaluate, {"recall": 1.0, "epochs": 0.0}, known=known)
    if order is not None:
        report = Report.model_validate_json(files[REPORT])
        chosen = OrderChoice(order=order, reason="a test asks for it")
        files[REPORT] = report.model_copy(update={"order": chosen}).model_dump_json().encode()
    publish(store, steps["reports"], files)
    return promote(store, steps["reports"].version, None).release


def _models(store: Store, config: Config, steps: dict[str, Step]) -> None:
    from mrcg.encoder.embedder import Embedder
    from mrcg.encoder.trainer import new_encoder
    from mrcg.reranker import spec as reranker_files
    from mrcg.reranker.trainer import new_reranker
    from mrcg.training.state import TrainingState, snapshot_name

    def weights(model: Any) -> bytes:
        import torch

        return TrainingState(model, torch.optim.SGD(model.parameters(), lr=1.0)).best_weights()

    corpus = Corpus(_open(store, steps["corpus"]))
    encoder = new_encoder(config.encoder, corpus.classes, config.seed, None)
    data = weights(encoder)
    named = fingerprint(encoder.spec, data)
    facts = spec_bytes(encoder.spec, named)
    files = {WEIGHTS: data, SPEC: facts, HISTORY: b"{}", snapshot_name(0): data}
    publish(store, steps["encoders"], files, {"epochs": 0})
    pixels = corpus.pixels(range(len(corpus)), config.encoder.input_size)
    step, described, appearance = steps["embeddings"], {}, None
    if config.embed.appearance.components:
        described = FitAppearance(store.url, dict(step.inputs), config.embed)(False)
        appearance = Appearance.from_bytes(described[TENSORS])
    vectors = Embedder.open(_open(store, steps["encoders"]), appearance=appearance).embed(pixels).astype(np.float16)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    table = pa.table(
        {"image_id": corpus.scans["image_id"], "embedding": column}, schema=schemas.embeddings(vectors.shape[1])
    )
    embedding_facts = facts_of(described, _open(store, steps["encoders"]))
    publish(store, step, {**embeddings_by_file(corpus, table), **described}, embedding_facts.model_dump())
    publish_index(store, config, steps["indexes"])
    step = steps["graphs"]
    with begin(store, "graphs", step.version) as attempt:
        work = graph_work(store, config, step, attempt.folder)
        counts, files = build_graphs(work, LocalExecutor(), silent)
        attempt.publish(make_manifest("graphs", step.version, step.settings, step.inputs, counts, files))
    reranker = new_reranker(config.reranker, 16, config.seed, named)
    spec = reranker.spec.model_dump_json().encode()
    data = weights(reranker)
    files = {reranker_files.WEIGHTS: data, reranker_files.SPEC: spec, snapshot_name(0): data}
    publish(store, steps["rerankers"], files)


def _open(store: Store, step: Step) -> Artefact:
    return store.artefact(step.stage.kind, step.version)


def embeddings_by_file(corpus: Corpus, table: pa.Table) -> dict[str, bytes]:
    """A table of embeddings cut as the corpus' files of pixels are."""
    files, start = {}, 0
    for file in files_of(corpus.scans):
        files[file.name] = schemas.to_ipc(table.slice(start, file.rows).combine_chunks())
        start += file.rows
    return files


def publish_index(store: Store, config: Config, step: Step) -> Manifest:
    """An index by library calls, without Ray."""
    inputs = step.inputs
    with begin(store, "indexes", step.version) as attempt:
        work = IndexWork(
            *(store.url, inputs["corpus"], inputs["embeddings"], inputs.get("indexes"), attempt.folder),
            *(config.index, config.seed),
        )
        made = build_index(work, LocalExecutor(), silent)
        counts = {"recall_at_50": made.facts.recall}
        embeddings = store.artefact("embeddings", inputs["embeddings"])
        names = [name for name in (FACTS, TENSORS) if name in embeddings.names()]
        files = [*made.files, *(attempt.write(name, embeddings.read_bytes(name)) for name in names)]
        return attempt.publish(make_manifest("indexes", step.version, step.settings, step.inputs, counts, files))


def graph_work(store: Store, config: Config, step: Step, attempt: str) -> GraphWork:
    """What the pieces of the work on graphs know."""
    versions = (step.inputs[kind] for kind in ("corpus", "splits", "embeddings", "indexes"))
    return GraphWork(store.url, *versions, attempt, config.graph.neighbours, None, None, config.seed)


def strings(values: Sequence[str | None]) -> pa.ChunkedArray:
    """A column of a table."""
    return pa.chunked_array([pa.array(values, pa.string())])


def index_of(
    vectors: np.ndarray[Any, Any], ids: list[str], labels: list[Any], groups: list[str], shards: int, kind: str = "flat"
) -> ShardedIndex:
    """An index over vectors, in memory."""
    count, dim = vectors.shape
    shape = shape_of(kind, count, dim, 0.95)  # type: ignore[arg-type]
    trained = faiss_backend.train(shape, vectors.astype(np.float32), 1) if shape.trained else None
    parts = []
    of = shards_of(strings(ids), strings([None] * count), {}, shards)
    facts: dict[str, Any] = {"image_id": ids, "row": range(count), "label": labels, "group_id": groups}
    nothing = {name: [None] * count for name in schemas.ROWS.names if name not in facts}
    table = pa.table({name: {**facts, **nothing}[name] for name in schemas.ROWS.names}, schema=schemas.ROWS)
    for shard in range(shards):
        mine = np.flatnonzero(of == shard)
        index = faiss_backend.new_index(shape, 1) if trained is None else faiss.clone_index(trained)
        stored = vectors[mine].astype(np.float16)
        if len(mine):
            index.add(stored.astype(np.float32))
        parts.append(Part(lambda mapped, index=index: faiss.clone_index(index), stored, table.take(pa.array(mine))))  # type: ignore[misc]
    return ShardedIndex(shape, parts, initial_nprobe_or_ef(shape, 0.95))
