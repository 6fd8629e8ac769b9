"""Images per second and peak memory of ``mrcg ingest``, beside a plain ``multiprocessing.Pool``.

    python -m tests.bench.ingest [--scans FOLDER] [--times 1 4 16]

The pool makes the same reader calls and writes the same Parquet; it hashes nothing, groups nothing, can neither
be stopped and go on nor outlive a file that crashes a decoder. The ratio is of throughputs: images over the seconds
from the first chunk's begin to the last one's end, on both sides without the start of processes. Beside it stand the
seconds of the whole command: Ray's start, listing, grouping and stop included. Memory is the sum of what all
processes hold for themselves, sampled twice a second.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mrcg.config.settings import IngestSettings
from mrcg.corpus.sources import SourceFile, open_source
from mrcg.imaging.readers import read
from mrcg.imaging.samples import write_samples
from mrcg.storage import schemas

IMAGES = 3264
CHUNK = 512
SETTINGS = IngestSettings()


def pool_chunk(work: tuple[str, list[SourceFile], str]) -> tuple[float, float]:
    """One task of the pool: read some files, write a Parquet file; when it began and ended."""
    begin = time.time()
    source, files, out = work
    opened, rows = open_source(source), []
    for file in files:
        for one in read(opened.read(file), SETTINGS).slices:
            rows.append(
                {
                    "image_id": file.key,
                    "height": one.pixels.shape[0],
                    "width": one.pixels.shape[1],
                    "pixels": one.pixels.tobytes(),
                }
            )
    table = pa.Table.from_pylist(rows, schemas.IMAGES)
    pq.write_table(table, out, compression="zstd", use_dictionary=False, row_group_size=SETTINGS.images_per_row_group)
    return begin, time.time()


def run_pool(source: str, out: Path) -> tuple[float, float]:
    """Seconds of the whole pool, and from its first chunk's begin to the last one's end."""
    start = time.monotonic()
    files = list(open_source(source).walk())
    work = [(source, files[n : n + CHUNK], str(out / f"{n:07d}.parquet")) for n in range(0, len(files), CHUNK)]
    with multiprocessing.get_context("spawn").Pool() as pool:
        times = list(pool.imap_unordered(pool_chunk, work))
    return time.monotonic() - start, max(end for _, end in times) - min(begin for begin, _ in times)


def run_mrcg(source: str, store: Path) -> tuple[int, float, float, float]:
    """Images, seconds of the whole command, seconds of reading, and peak MB."""
    start = time.monotonic()
    words = [
        str(Path(sys.executable).parent / "mrcg"),
        "ingest",
        "--source",
        source,
        "--store",
        str(store),
        "--set",
        "encoder.weights=none",
        "--json",
    ]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peak, stop = [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            peak[0] = max(peak[0], sum(private(pid) for pid in family(process.pid)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, _ = process.communicate()
    seconds = time.monotonic() - start
    stop.set()
    watcher.join()
    assert process.returncode == 0, "mrcg ingest failed; run it by hand"
    (note,) = store.glob("corpus/*/run.json")
    reading = json.loads(note.read_text())["reading_seconds"]
    return json.loads(out)["stages"][0]["counts"]["images"], seconds, reading, peak[0]


def family(pid: int) -> Iterator[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(folder.name))
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += children.get(one, [])


def private(pid: int) -> float:
    """MB that a process holds for itself: resident pages without those of files and of shared memory."""
    try:
        _, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
    except OSError:
        return 0.0
    return (resident - shared) * 4096 / 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", help="folder of real scans, measured too")
    parser.add_argument("--times", type=int, nargs="*", default=[4, 16], help=f"multiples of {IMAGES} phantoms")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    columns = (
        "images", "command s", "pool s", "reading s", "pool reading s", "images/s", "pool images/s", "ratio", "peak MB",
    )  # fmt: skip
    print(f"{'source':>14} " + " ".join(columns))
    measured: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="bench-ingest-") as folder:
        sources = {"scans": options.scans} if options.scans else {}
        for times in options.times:
            sources[f"phantoms x{times}"] = str(Path(folder) / f"x{times}")
            write_samples(Path(folder) / f"x{times}", times * IMAGES, seed=1)
        for name, source in sources.items():
            out, store = Path(folder) / "pool", Path(folder) / "store"
            out.mkdir()
            pool_seconds, pool_reading = run_pool(source, out)
            images, seconds, reading, peak = run_mrcg(source, store)
            shutil.rmtree(out)
            shutil.rmtree(store)
            measured.append(
                {
                    "source": name,
                    "images": images,
                    "reading": reading,
                    "pool_reading": pool_reading,
                    "command": seconds,
                    "pool": pool_seconds,
                    "peak_mb": peak,
                }
            )
            values = (
                f"{images}", f"{seconds:.1f}", f"{pool_seconds:.1f}", f"{reading:.1f}", f"{pool_reading:.1f}",
                f"{images / reading:.0f}", f"{images / pool_reading:.0f}", f"{pool_reading / reading:.2f}", f"{peak:.0f}",
            )  # fmt: skip
            cells = (f"{value:>{len(column)}}" for value, column in zip(values, columns, strict=True))
            print(f"{name:>14} " + " ".join(cells), flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
