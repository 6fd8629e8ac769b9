"""What it costs to build, search, grow, promote and erase as a gallery grows.

    python -m tests.bench.updates --real STORE/embeddings/VERSION --out docs/bench/updates.json

Galleries of 10,000, 100,000 and 1,000,000 scans (tiny pictures, real embeddings enlarged by a mixture, 20 scans a patient,
2,000 of them labelled) go through the stages as ``mrcg run``, ``mrcg reindex`` and ``mrcg erase`` do, in one process. Models
are made up and nothing is embedded: that costs the same for each scan in a first build and when a hundredth is added.

- build: splits, index, query graphs and report of the whole gallery, and the index alone.
- reindex: the same after 1 % came in, and the index alone; the ratios are to the build's.
- promote, search (queries/s in batches of 64), erase one patient of 20 scans to the signed receipt.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from mrcg.config.loading import load_config
from mrcg.config.settings import Config
from mrcg.corpus.reader import QUARANTINE, pixels_writer
from mrcg.corpus.sources import Source
from mrcg.encoder.spec import HISTORY, SPEC, WEIGHTS, fingerprint, spec_bytes
from mrcg.encoder.trainer import new_encoder
from mrcg.erasure.records import ErasureTarget
from mrcg.execution.executor import LocalExecutor, silent
from mrcg.index import faiss_backend
from mrcg.index.sharded_index import ShardedIndex
from mrcg.pipeline.plan import Ancestry, Step, plan
from mrcg.pipeline.update import ReleaseUpdate
from mrcg.privacy.pseudonyms import Pseudonyms
from mrcg.privacy.signing import Signer
from mrcg.privacy.suppression import PATIENT
from mrcg.releases.release import promote, read_release
from mrcg.reranker import spec as reranker_files
from mrcg.reranker.trainer import new_reranker
from mrcg.stages.counts import IndexCounts
from mrcg.storage import schemas
from mrcg.storage.attempts import begin
from mrcg.storage.manifest import FileEntry
from mrcg.storage.store import Store
from mrcg.training.state import TrainingState, snapshot_name
from mrcg_jobs.erasure import Eraser, sweep_node_cache
from mrcg_jobs.runner import run_stages
from tests.bench.mixture import (
    PER_FILE,
    PER_PATIENT,
    enlarged,
    image_ids,
    real_embeddings,
    scans_table,
    write_embeddings,
)
from tests.manifests import make_manifest

COUNTS = (10_000, 100_000, 1_000_000)
LABELLED = 2000
GROWTH = 100
SIDE = 16
THREADS = 2


@dataclass
class Row:
    """Seconds, but ``search_qps``."""

    count: int
    kind: str
    shards: int
    build: float
    build_index: float
    search_qps: float
    reindex: float
    reindex_index: float
    promote: float
    erase: float


@dataclass(frozen=True)
class Bench:
    """One gallery and what its stages need."""

    store: Store
    config: Config
    real_nd: npt.NDArray[np.float32]
    count: int

    def steps(self, count: int, base: str | None) -> dict[str, Step]:
        """Steps of a first run, by kind."""
        source = Source("bench", f"{count}", count, 1, False)
        return {step.stage.kind: step for step in plan(self.config, source, "none", Ancestry(base=base))}

    def write_corpus(self, step: Step, start: int, old: Sequence[FileEntry], old_scans: pa.Table | None) -> None:
        """A corpus of all scans up to a number; what an earlier one has stays that one's."""
        end = start + (self.count if old_scans is None else self.count // GROWTH)
        ids, numbers = image_ids(end)[start:], np.arange(start, end)
        table = scans_table(ids, numbers, LABELLED if old_scans is None else len(ids) // 5)
        generation = 0 if old_scans is None else 1
        files = [f"images/g{generation:03d}-{place // PER_FILE:05d}-00.parquet" for place in range(len(ids))]
        hashes = [row.tobytes() for row in np.random.default_rng(start).integers(0, 256, (len(ids), 32), np.uint8)]
        for name, column in (("file", pa.array(files)), ("difference_hash", pa.array(hashes, pa.binary(32)))):
            at = table.schema.get_field_index(name)
            table = table.set_column(at, schemas.SCANS.field(name), column.cast(schemas.SCANS.field(name).type))
        whole = table if old_scans is None else pa.concat_tables([old_scans, table])
        with begin(self.store, "corpus", step.version, step.inputs) as attempt:
            entries = list(old)
            for first in range(0, len(ids), PER_FILE):
                name = files[first]
                with self.store.writer(f"{attempt.output}/{name}") as sink:
                    _write_pixels(sink, ids[first : first + PER_FILE])
                entries.append(sink.entry(name))
            entries.append(attempt.write("scans/00000.parquet", schemas.to_parquet(whole)))
            entries.append(
                attempt.write(f"{QUARANTINE}00000.parquet", schemas.to_parquet(schemas.QUARANTINE.empty_table()))
            )
            counts = {"images": whole.num_rows, "generation": generation, "source": "bench", "classes": {}}
            attempt.publish(make_manifest("corpus", step.version, step.settings, step.inputs, counts, entries))

    def write_embeddings(self, step: Step, start: int, count: int, old: Sequence[FileEntry], named: str) -> None:
        """Embeddings of the scans from a number on, beside those that are there."""
        dim, prefix = self.real_nd.shape[1], f"embeddings/g{0 if start == 0 else 1:03d}"
        with begin(self.store, "embeddings", step.version, step.inputs) as attempt:
            vectors = enlarged(self.real_nd, count, 1 + start)
            entries = [*old, *write_embeddings(attempt, image_ids(start + count)[start:], vectors, dim, prefix)]
            counts = {"dim": dim, "fingerprint": named}
            attempt.publish(make_manifest("embeddings", step.version, step.settings, step.inputs, counts, entries))

    def write_models(self, steps: Mapping[str, Step]) -> str:
        """Models that learned nothing: what is measured here is not how well they rank. The encoder's fingerprint."""
        encoder = new_encoder(self.config.encoder, ("class 0", "class 1", "class 2", "class 3"), 1, None)
        data = _weights(encoder)
        named = fingerprint(encoder.spec, data)
        self._publish(
            steps["encoders"],
            {WEIGHTS: data, SPEC: spec_bytes(encoder.spec, named), HISTORY: b"{}", snapshot_name(0): data},
            {"epochs": 0, "fingerprint": named},
        )
        reranker = new_reranker(self.config.reranker, self.real_nd.shape[1], 1, named)
        data = _weights(reranker)
        spec = reranker.spec.model_dump_json().encode()
        self._publish(
            steps["rerankers"],
            {reranker_files.WEIGHTS: data, reranker_files.SPEC: spec, snapshot_name(0): data},
            {},
        )
        return named

    def _publish(self, step: Step, files: Mapping[str, bytes], counts: Mapping[str, object]) -> None:
        with begin(self.store, step.stage.kind, step.version) as attempt:
            entries = [attempt.write(name, data) for name, data in files.items()]
            attempt.publish(make_manifest(step.stage.kind, step.version, step.settings, step.inputs, counts, entries))

    def run(self, steps: Iterable[Step]) -> dict[str, float]:
        """Seconds of stages, by kind."""
        nowhere = Source("", "", 0, 0, False)
        results = run_stages(self.store, self.config, nowhere, steps, None, lambda _: silent, LocalExecutor())
        return {result.kind: result.seconds for result in results}

    def search_rate(self, index: str) -> float:
        """Queries per second in batches of 64."""
        opened = ShardedIndex.open(self.store.artefact("indexes", index))
        faiss_backend.use_threads(THREADS)
        queries = next(enlarged(self.real_nd, 1024, 2)).astype(np.float32)
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < 2:
            opened.search(queries[done % 1024 : done % 1024 + 64], 50)
            done += 64
        return done / (time.perf_counter() - start)


def _write_pixels(sink: object, ids: Sequence[str]) -> None:
    pixels = np.random.default_rng(len(ids)).integers(0, 256, (len(ids), SIDE * SIDE), dtype=np.uint8)
    sides = [SIDE] * len(ids)
    rows = {"image_id": list(ids), "height": sides, "width": sides, "pixels": [row.tobytes() for row in pixels]}
    with pixels_writer(sink) as writer:
        writer.write_table(pa.table(rows, schema=schemas.IMAGES), row_group_size=512)


def _weights(model: torch.nn.Module) -> bytes:
    return TrainingState(model, torch.optim.SGD(model.parameters(), lr=1.0)).best_weights()


def measure(bench: Bench) -> Row:
    """All figures of one gallery."""
    store, count = bench.store, bench.count
    steps = bench.steps(count, None)
    bench.write_corpus(steps["corpus"], 0, [], None)
    named = bench.write_models(steps)
    bench.write_embeddings(steps["embeddings"], 0, count, [], named)
    built = bench.run([steps[kind] for kind in ("splits", "indexes", "graphs", "reports")])
    _, promoting = _timed(lambda: promote(store, steps["reports"].version, None))
    release = read_release(store)
    manifest = store.manifest("indexes", release.index)
    rate = bench.search_rate(release.index)

    line = ReleaseUpdate.of(store, release)
    grown = {
        step.stage.kind: step
        for step in line.steps(Source("bench", "more", 1, 1, False), Ancestry(base=release.corpus))
    }
    corpus = store.artefact("corpus", release.corpus)
    kept = [corpus.reference(name) for name in corpus.names("images/")]
    bench.write_corpus(grown["corpus"], count, kept, _scans(store, release.corpus))
    embeddings = store.artefact("embeddings", line.manifests["embeddings"].version)
    bench.write_embeddings(
        grown["embeddings"], count, count // GROWTH, [embeddings.reference(n) for n in embeddings.names()], named
    )
    again = bench.run([grown[kind] for kind in ("splits", "indexes", "graphs", "reports")])
    promote(store, grown["reports"].version, None)

    eraser = Eraser(
        store, Pseudonyms(bytes(32)), Signer(bytes(32)), LocalExecutor(), None, lambda _: silent, sweep_node_cache
    )
    target = ErasureTarget(kind=PATIENT, value=f"{count // PER_PATIENT // 2:032x}")
    signed, erasing = _timed(lambda: eraser.erase(target))
    assert signed.receipt.scans == PER_PATIENT
    return Row(
        count=count,
        kind=manifest.counts_as(IndexCounts).kind,
        shards=manifest.counts_as(IndexCounts).shards,
        build=sum(built.values()),
        build_index=built["indexes"],
        search_qps=rate,
        reindex=sum(again.values()),
        reindex_index=again["indexes"],
        promote=promoting,
        erase=erasing,
    )


def _scans(store: Store, corpus: str) -> pa.Table:
    return schemas.from_parquet(store.artefact("corpus", corpus).read_bytes("scans/00000.parquet"))


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", required=True, help="a version of embeddings: STORE/embeddings/VERSION")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--kind", default="ivf_flat", help="of index; auto lets the planner choose")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    real = real_embeddings(options.real)
    config = load_config(
        "mobilenet",
        [
            f"index.kind={options.kind}", f"encoder.embedding_dim={real.shape[1]}", "encoder.weights=none",
            "split.protocol=paper", "evaluate.picture_queries=2", f"compute.index_threads={THREADS}",
        ],
    )  # fmt: skip
    rows = []
    for count in options.counts:
        with tempfile.TemporaryDirectory(prefix="bench-updates-") as folder:
            rows.append(measure(Bench(Store(folder), config, real, count)))
        print(json.dumps(asdict(rows[-1])), flush=True)
        if options.out:
            options.out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
