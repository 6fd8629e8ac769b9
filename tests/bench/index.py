"""What the index costs beside plain FAISS with the same index, and beside other libraries.

    python -m tests.bench.index --real STORE/embeddings/VERSION [STORE/embeddings/VERSION …] --out docs/bench/index.json

Real embeddings of each version are enlarged by a seeded mixture (``tests.bench.mixture``), searched with others of the same
mixture that are not in the gallery. For each kind of index:

- build: seconds from a file of half-precision vectors to files on disk, each in a process of its own; the median of three
  turns where they are short, and of two of plain FAISS where they are not very long. Ours stores the exact vectors and
  which scan each row is as well, hashes all that it reads and writes, and measures its recall: seconds of that are in
  ``build_seconds``, and beside them.
- recall@50 against an exact scan; effort is raised until it is 0.95, for everybody.
- queries per second in batches of 64 and alone: the median over rounds in which all contenders of a kind take turns.
- memory: the most that the process held for itself (without pages of files), while building and while serving. What
  the planner says of it is set beside it where the table is made (``docs/index_figures.py``).

All contenders of a gallery and a kind are measured in one run; ``--counts`` and ``--kinds`` cut a run into shorter ones that
write into the same file. The machine should be idle.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from mrcg.index.distances import exact_search, recall_at
from mrcg.index.layout import KindName
from mrcg.storage.store import Store
from tests.bench.contenders import (
    RECALL,
    THREADS,
    Autofaiss,
    Contender,
    Hnswlib,
    Lance,
    Ours,
    Plain,
    Queries,
    Rows,
    Searcher,
    Usearch,
)
from tests.bench.measured import measured
from tests.bench.mixture import Versions, enlarged, fill_store, real_embeddings, write_vectors

DEPTH = 50
QUERIES = 1024
BATCH = 64
#: Rounds in which everybody takes a turn, and how long a turn is at least (seconds).
ROUNDS, TURN = 5, 0.7
#: Builds of each contender, all in turns, and until how many seconds they are repeated: a short one, plain FAISS's.
BUILDS, SHORT, LONG = 3, 8.0, 150.0


@dataclass
class Row:
    """What one contender took."""

    gallery: str
    kind: str
    contender: str
    build_seconds: float
    steps: dict[str, float]
    build_bytes: int
    recall: float
    effort: int
    qps_1: float
    qps_64: float
    serve_bytes: int
    #: Effort, recall and queries per second in batches of 64, below and above the recall that all are compared at.
    curve: list[tuple[int, float, float]]
    build_ratio: float | None = None
    search_ratio: float | None = None


@dataclass(frozen=True)
class Gallery:
    """One gallery of the run: its vectors on disk, in a store, and its queries with their true neighbours."""

    name: str
    count: int
    dim: int
    path: Path
    store: str
    versions: Versions
    queries: Queries
    exact: Rows


def make_gallery(real: str, count: int, folder: Path) -> Gallery:
    """Enlarge, write, and find the true neighbours of the queries."""
    vectors = real_embeddings(real)
    dim = vectors.shape[1]
    path = folder / "vectors.npy"
    write_vectors(vectors, count, 1, path)
    store = folder / "store"
    versions = fill_store(Store(str(store)), path)
    queries = next(enlarged(vectors, QUERIES, 2)).astype(np.float32)
    exact = exact_search(queries, np.load(path, mmap_mode="r"), DEPTH)
    return Gallery(f"{count:,} x {dim}", count, dim, path, str(store), versions, queries, exact)


def build(contender: Contender, vectors: Path, folder: Path) -> dict[str, Any]:
    """Build, and know the seconds without what is imported."""
    for name in contender.needs:
        importlib.import_module(name)
    start = time.perf_counter()
    said = contender.build(vectors, folder)
    return {"own_seconds": time.perf_counter() - start, **said}


def open_and_search(contender: Contender, folder: Path, queries: Queries, effort: int) -> int:
    """What a serving process does."""
    searcher = contender.open(folder)
    for start in range(0, len(queries), BATCH):
        searcher.search(queries[start : start + BATCH], DEPTH, effort)
    return 0


def recall_of(searcher: Searcher, gallery: Gallery, effort: int) -> float:
    """Recall@50 at an effort."""
    starts = range(0, QUERIES, BATCH)
    found = [searcher.search(gallery.queries[start : start + BATCH], DEPTH, effort) for start in starts]
    return recall_at(np.concatenate(found), gallery.exact)


def curve(searcher: Searcher, gallery: Gallery, effort: int) -> list[tuple[int, float, float]]:
    """Recall and throughput around an effort; one point where there is none."""
    tried = sorted(
        {min(searcher.most, max(1, round(effort * share))) for share in (0.25, 0.5, 1, 2, 4)} if effort else {0}
    )
    return [(one, recall_of(searcher, gallery, one), rate(searcher, gallery, one, BATCH)) for one in tried]


def tuned(searcher: Searcher, gallery: Gallery) -> tuple[int, float]:
    """The least effort of a rising row that reaches the recall, and what it reaches."""
    effort = searcher.first
    while True:
        recall = recall_of(searcher, gallery, effort)
        if recall >= RECALL or effort >= searcher.most:
            return effort, recall
        effort = min(searcher.most, int(np.ceil(effort * 1.15)))


def rate(searcher: Searcher, gallery: Gallery, effort: int, batch: int) -> float:
    """Queries per second of one turn."""
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < TURN:
        first = done % QUERIES
        done += len(gallery.queries[first : first + batch])
        searcher.search(gallery.queries[first : first + batch], DEPTH, effort)
    return done / (time.perf_counter() - start)


def place(contender: Contender, gallery: Gallery) -> Path:
    """Where a contender builds: ours lies in its store."""
    name = contender.name.replace(" ", "-").replace(",", "")
    return gallery.path.parent / ("store" if isinstance(contender, Ours) else "built") / name


def relative(contender: Contender, gallery: Gallery) -> Path:
    """The same as the contender wants it named."""
    return Path(place(contender, gallery).name) if isinstance(contender, Ours) else place(contender, gallery)


def compare(kind: str, contenders: Sequence[Contender], gallery: Gallery) -> list[Row]:
    """Build all, then let them search in turns."""
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}
    steps: dict[str, dict[str, float]] = {}
    for turn in range(BUILDS):
        for contender in contenders:
            first = seconds.get(contender.name, [0.0])[0]
            # Plain FAISS once more where all are long: what the machine does in between shows.
            if turn and first > (LONG if turn == 1 and isinstance(contender, Plain) else SHORT):
                continue
            folder = place(contender, gallery)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            found = measured(build, contender, gallery.path, relative(contender, gallery))
            seconds.setdefault(contender.name, []).append(found.result["own_seconds"])
            peaks[contender.name] = max(peaks.get(contender.name, 0), found.peak_bytes)
            steps[contender.name] = found.result.get("steps", {})
            print(f"{gallery.name} {kind} {contender.name}: built in {seconds[contender.name][-1]:.1f} s", flush=True)
    searchers = {one.name: one.open(relative(one, gallery)) for one in contenders}
    efforts = {name: tuned(one, gallery) for name, one in searchers.items()}
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(ROUNDS):
        for batch in (BATCH, 1):
            for name, searcher in searchers.items():
                rates.setdefault((name, batch), []).append(rate(searcher, gallery, efforts[name][0], batch))
    curves = {name: curve(one, gallery, efforts[name][0]) for name, one in searchers.items()}
    del searchers
    rows = []
    for one in contenders:
        name = one.name
        serving = measured(open_and_search, one, relative(one, gallery), gallery.queries, efforts[name][0])
        rows.append(
            Row(
                gallery=gallery.name,
                kind=kind,
                contender=name,
                build_seconds=statistics.median(seconds[name]),
                steps=steps[name],
                build_bytes=peaks[name],
                recall=efforts[name][1],
                effort=efforts[name][0],
                qps_1=statistics.median(rates[name, 1]),
                qps_64=statistics.median(rates[name, BATCH]),
                serve_bytes=serving.peak_bytes,
                curve=curves[name],
            )
        )
        shutil.rmtree(place(one, gallery))
    _with_ratios(rows, rates)
    return rows


def _with_ratios(rows: list[Row], rates: dict[tuple[str, int], list[float]]) -> None:
    plain = next((row for row in rows if row.contender == "plain FAISS"), None)
    for row in rows:
        if plain is not None and row.contender.startswith("ours"):
            row.build_ratio = row.build_seconds / plain.build_seconds
            pairs = zip(rates[row.contender, BATCH], rates[plain.contender, BATCH], strict=True)
            row.search_ratio = statistics.median(mine / other for mine, other in pairs)


def contenders_of(kind: KindName, gallery: Gallery, autofaiss: str | None) -> list[Contender]:
    """Who is compared: at one gallery's size and with one kind of index."""
    count, dim, place = gallery.count, gallery.dim, (gallery.store, gallery.versions)
    many = (1,) if kind == "hnsw" and count > 100_000 else (1, 4, 8)
    found: list[Contender] = [Plain(kind, count, dim), *(Ours(kind, shards, *place) for shards in many)]
    if kind in ("ivf_flat", "ivf_sq"):
        found.append(Plain(kind, count, dim, pruned=True))
    if kind == "ivf_sq":
        found.append(Plain(kind, count, dim, exact=True))
    if kind == "hnsw":
        found += [Hnswlib(dim), Usearch(dim)]
    if kind == "ivf_flat":
        # On two cores autofaiss takes more than ten minutes to choose and to train for a million.
        found += [Lance(count, dim), *([Autofaiss(autofaiss)] if autofaiss and count <= 100_000 else [])]
    return found


def show(row: Row) -> None:
    """One line of the run."""
    ratios = "" if row.build_ratio is None else f"  build x{row.build_ratio:.2f} search x{row.search_ratio:.2f}"
    print(
        f"{row.gallery} {row.kind:>10} {row.contender:>14}: build {row.build_seconds:7.1f} s {row.build_bytes / 1e6:6.0f} MB, "
        f"recall {row.recall:.3f} at {row.effort:4}, {row.qps_64:8.0f} q/s in 64, {row.qps_1:6.0f} alone, "
        f"{row.serve_bytes / 1e6:6.0f} MB{ratios}",
        flush=True,
    )


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write rows into a file; of what was measured before, other galleries and kinds stay."""
    old = json.loads(path.read_text()) if path.exists() else []
    new = {(row.gallery, row.kind) for row in rows}
    names = [field.name for field in fields(Row)]
    kept = [{name: row[name] for name in names} for row in old if (row["gallery"], row["kind"]) not in new]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*kept, *map(asdict, rows)], indent=1) + "\n")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--real", nargs="+", required=True, help="versions of embeddings, each STORE/embeddings/VERSION"
    )
    parser.add_argument("--most", type=int, nargs="+", default=[1_000_000, 100_000], help="largest gallery of each")
    parser.add_argument("--counts", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--kinds", nargs="+", default=["flat", "ivf_flat", "ivf_sq", "opq_ivf_pq", "hnsw"])
    parser.add_argument("--autofaiss", help="Python of an environment that has autofaiss; left out where none is given")
    parser.add_argument("--out", type=Path, help="JSON file for the figures, updated after each kind")
    options = parser.parse_args()
    faiss.omp_set_num_threads(THREADS)
    rows: list[Row] = []
    for count in options.counts:
        for real, most in zip(options.real, options.most[: len(options.real)], strict=True):
            if count > most:
                continue
            with tempfile.TemporaryDirectory(prefix="bench-index-") as folder:
                gallery = make_gallery(real, count, Path(folder))
                for kind in options.kinds:
                    for row in compare(kind, contenders_of(kind, gallery, options.autofaiss), gallery):
                        show(row)
                        rows.append(row)
                    if options.out:
                        write(options.out, rows)


if __name__ == "__main__":
    main()
