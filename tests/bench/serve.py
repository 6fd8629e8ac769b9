"""What serving costs: the chain beside its own compute, and beside one process that does the same work.

    python -m tests.bench.serve --store STORE --scans FOLDER --out docs/bench/serve.json

The store has a release of the recipe ``mobilenet``. Everything is asked over HTTP by a process of its own, on the same
machine, which should be idle. Services take turns, each alone, and each is asked by 1, 8, 32 and 64 clients at once;
a client asks again as soon as it was answered. Nobody retries: a refused call counts as failed.

- chain: idle, one client: milliseconds from end to end, beside what embedding, searching and reranking the same scans
  take in one process; the difference is transport, routing and batching.
- engines: what computes the encoder (``tests.bench.engines``).
- services: queries per second, median and 99th percentile, of ours and of both forms of ``tests.bench.plain_service``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import httpx
import numpy as np
import torch

from mrcg.api.requests import SearchParams
from mrcg.config.loading import load_config
from mrcg.retrieval.local import LocalPipeline
from mrcg.storage.store import Store
from tests.bench.engines import GALLERY_ENGINE, engines
from tests.factories import free_port
from tests.serving import serving

RECIPE = "mobilenet"
CLIENTS = (1, 8, 32, 64)
SCANS = 100
#: Seconds for which each is asked, after those in which it warms up.
ASKED, WARM = 12.0, 3.0
#: Rounds in which all services take a turn.
ROUNDS = 3
FORMS = ("ours", "one by one", "batched")


@dataclass(frozen=True)
class Figures:
    """What one service did for so many clients."""

    service: str
    clients: int
    rate: float
    p50_ms: float
    p99_ms: float
    failed: int


@dataclass(frozen=True)
class Chain:
    """One search on an idle service, and its compute alone (milliseconds, medians)."""

    end_to_end_ms: float
    p99_ms: float
    compute_ms: float


def ask(url: str, scans: Sequence[bytes], clients: int, seconds: float) -> tuple[list[float], int, float]:
    """Milliseconds of each answer, calls that failed, and the seconds that it took; in a process of its own."""

    async def run() -> tuple[list[float], int, float]:
        took, failed = list[float](), 0
        limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
        async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
            start = time.perf_counter()

            async def client(number: int) -> None:
                nonlocal failed
                turn = number
                while time.perf_counter() - start < seconds:
                    begun = time.perf_counter()
                    response = await http.post("/v1/search", files={"image": scans[turn % len(scans)]})
                    if response.is_success:
                        took.append((time.perf_counter() - begun) * 1000)
                    else:
                        failed += 1
                    turn += clients

            await asyncio.gather(*(client(number) for number in range(clients)))
            return took, failed, time.perf_counter() - start

    return asyncio.run(run())


def asked(url: str, scans: Sequence[bytes], clients: int, seconds: float) -> tuple[list[float], int, float]:
    """The same from here."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(ask, (url, scans, clients, seconds))


@contextlib.contextmanager
def running(form: str, store: str) -> Iterator[str]:
    """URL of one of the services."""
    if form == "ours":
        with serving(store, "--recipe", RECIPE) as url:
            yield url
        return
    port = free_port()
    how = "batched" if form == "batched" else "one"
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.plain_service", store, str(port), how, RECIPE])
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/readyz").is_success:
                    break
            if process.poll() is not None:
                raise RuntimeError(f"the plain service ended with {process.returncode}")
            time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def compute(store: str, scans: Sequence[bytes]) -> float:
    """Median milliseconds of the stages of a search in this process."""
    settings = load_config(RECIPE).serve
    torch.set_num_threads(settings.embedder.threads)
    pipeline = LocalPipeline.open(Store(store), serve=settings)
    for scan in scans[:10]:
        pipeline.search(scan, SearchParams(k=10))
    return statistics.median(sum(pipeline.search(scan, SearchParams(k=10)).milliseconds.values()) for scan in scans)


def alone(store: str, scans: Sequence[bytes]) -> float:
    """The same in a process of its own."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(compute, (store, scans))


def services(store: str, scans: Sequence[bytes]) -> tuple[Chain, list[Figures]]:
    """All services with all numbers of clients: medians over the rounds, failures of all of them."""
    found: dict[tuple[str, int], list[tuple[list[float], int, float]]] = {}
    computing = []
    for turn in range(ROUNDS):
        computing.append(alone(store, scans))
        for form in FORMS:
            with running(form, store) as url:
                for clients in CLIENTS:
                    asked(url, scans, clients, WARM)
                    found.setdefault((form, clients), []).append(asked(url, scans, clients, ASKED))
                    print(f"round {turn + 1}: {form}, {clients} clients", flush=True)
    figures = [
        Figures(
            service=form,
            clients=clients,
            rate=statistics.median(len(took) / seconds for took, _, seconds in rounds),
            p50_ms=statistics.median(statistics.median(took) for took, _, _ in rounds),
            p99_ms=statistics.median(float(np.percentile(took, 99)) for took, _, _ in rounds),
            failed=sum(failed for _, failed, _ in rounds),
        )
        for (form, clients), rounds in found.items()
    ]
    idle = next(one for one in figures if (one.service, one.clients) == ("ours", 1))
    return Chain(idle.p50_ms, idle.p99_ms, statistics.median(computing)), figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--scans", type=Path, required=True, help="folder with images, of which 100 are asked")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    paths = sorted(path for path in options.scans.rglob("*") if path.suffix.lower() in {".png", ".jpg", ".jpeg"})
    scans = [path.read_bytes() for path in paths[:: max(1, len(paths) // SCANS)][:SCANS]]
    computed = engines(options.store)
    for one in computed:
        print(
            f"{one.engine:>14}, {one.threads} threads: {one.rate:6.1f} images/s, MAP {one.map:.4f}, "
            f"reranked {one.reranked_map:.4f}, top 10 kept {one.kept:.4f} (gallery: {GALLERY_ENGINE})",
            flush=True,
        )
    idle, rows = services(options.store, scans)
    over = idle.end_to_end_ms - idle.compute_ms
    print(f"idle: {idle.end_to_end_ms:.1f} ms end to end, {idle.compute_ms:.1f} ms compute, {over:.1f} ms over")
    for row in rows:
        print(
            f"{row.service:>12} {row.clients:3} clients: {row.rate:6.1f} queries/s, p50 {row.p50_ms:7.1f} ms, "
            f"p99 {row.p99_ms:7.1f} ms, {row.failed} failed"
        )
    if options.out:
        figures = {
            "recipe": RECIPE,
            "cores": os.cpu_count(),
            "chain": asdict(idle),
            "gallery_engine": GALLERY_ENGINE,
            "engines": [asdict(one) for one in computed],
            "services": [asdict(row) for row in rows],
        }
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
