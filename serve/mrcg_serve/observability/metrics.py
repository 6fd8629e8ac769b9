"""The metrics of the service, and how ``/metrics`` collects them (docs/serving.md#metrics).

Ray sends the metrics of each replica to the metrics endpoint of its node, named ``ray_mrcg_…``. Serve's own metrics
(queues, replicas, requests) are there as ``ray_serve_…``. Tags name the deployment and the replica. Each gateway
collects from all nodes, so a scraper that knows one address sees the whole service.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence

import httpx
import ray
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from ray.serve.metrics import Counter, Gauge, Histogram

from mrcg.api.responses import Answer

SECONDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
SIZES = [1, 2, 4, 8, 16, 32, 64]
#: Only Ray metrics with these prefixes are exported.
EXPORTED = ("ray_mrcg_", "ray_serve_")
SCRAPE_SECONDS = 5.0


class SearchMeters:
    """Metrics of a gateway: searches by outcome, stage times, out-of-distribution scans, and the pinned release."""

    def __init__(self) -> None:
        self._requests = Counter("mrcg_requests_total", "Searches by outcome.", ("outcome",))
        self._seconds = Histogram("mrcg_stage_seconds", "Duration of each stage of a search.", SECONDS, ("stage",))
        self._out_of_distribution = Counter(
            "mrcg_out_of_distribution_total", "Searches whose scan is unlike the gallery."
        )
        self._release = Gauge("mrcg_release", "Number of the release that new requests are answered from.")
        self._age = Gauge("mrcg_release_age_seconds", "Time since that release was created.")
        self._drift = Gauge(
            "mrcg_score_drift", "Population stability index of recent scores against the release's report."
        )

    def count_error(self, code: str) -> None:
        """Count a search that failed, by the code of its problem."""
        self._requests.inc(tags={"outcome": code})

    def count_answer(self, result: Answer, rerank_requested: bool) -> None:
        """Count an answered search and observe the duration of its stages."""
        outcome = "reranked" if result.reranked else "fallback" if rerank_requested else "ann_order"
        self._requests.inc(tags={"outcome": "partial" if result.partial else outcome})
        for stage, milliseconds in result.milliseconds.items():
            self._seconds.observe(milliseconds / 1000, tags={"stage": stage})
        if result.out_of_distribution:
            self._out_of_distribution.inc()

    def set_release(self, release: int, created: float, drift: float | None) -> None:
        """Set the gauges of the pinned release.

        Args:
            release: its number.
            created: when it was created, in seconds since 1970.
            drift: the population stability index of its scores; None while too few searches were counted.
        """
        self._release.set(release)
        self._age.set(max(0.0, time.time() - created))
        if drift is not None:
            self._drift.set(drift)


class BatchMeter:
    """Metric of a stage: the number of requests in a batch."""

    def __init__(self) -> None:
        self._sizes = Histogram("mrcg_batch_size", "Requests that were computed in one batch.", SIZES)

    def count_batch(self, size: int) -> None:
        """Observe the size of a batch."""
        self._sizes.observe(size)


async def exposition() -> bytes:
    """Return the metrics of all nodes in Prometheus text format. A node that does not respond is left out."""
    nodes = [node for node in await asyncio.to_thread(ray.nodes) if node["Alive"]]
    urls = [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in nodes]
    async with httpx.AsyncClient(timeout=SCRAPE_SECONDS) as http:
        pages = await asyncio.gather(*(http.get(url) for url in urls), return_exceptions=True)
    return merge_pages([page.text for page in pages if isinstance(page, httpx.Response) and page.is_success])


def merge_pages(pages: Sequence[str]) -> bytes:
    """Merge pages in Prometheus text format: the exported families, each once with the samples of all pages."""
    families: dict[str, Metric] = {}
    for page in pages:
        for family in text_string_to_metric_families(page):
            if family.name.startswith(EXPORTED):
                families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                families[family.name].samples += family.samples
    registry = CollectorRegistry()
    registry.register(_Families(families.values()))
    return generate_latest(registry)


class _Families:
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families

    def describe(self) -> Iterable[Metric]:
        return self._families
