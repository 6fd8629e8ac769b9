"""What the service counts, and how ``/metrics`` shows all of it.

Ray carries what each replica counts to the metrics endpoint of its node, as ``ray_mrcg_…``, beside what Serve counts
itself (queues, replicas, requests) as ``ray_serve_…``; the tags say which deployment and replica it was. Any gateway
shows what all nodes have, so a scraper that knows one address sees the whole service.
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
#: What is shown of all that Ray counts.
OURS = ("ray_mrcg_", "ray_serve_")
ASK_SECONDS = 5.0


class SearchMeters:
    """What a gateway counts: searches by outcome, their stages' times, and what their answers say of themselves."""

    def __init__(self) -> None:
        self._requests = Counter("mrcg_requests_total", "Searches by outcome.", ("outcome",))
        self._seconds = Histogram("mrcg_stage_seconds", "Time of each stage of a search.", SECONDS, ("stage",))
        self._strange = Counter("mrcg_out_of_distribution_total", "Searches whose scan is unlike the gallery.")
        self._release = Gauge("mrcg_release", "Number of the release that is answered under.")
        self._age = Gauge("mrcg_release_age_seconds", "Time since that release was made.")
        self._drift = Gauge("mrcg_score_drift", "Population stability index of scores against the release's report.")

    def refused(self, code: str) -> None:
        """Count a search that was refused, by the code of its problem."""
        self._requests.inc(tags={"outcome": code})

    def answered(self, result: Answer, reranking_wanted: bool) -> None:
        """Count an answered search."""
        outcome = "reranked" if result.reranked else "fallback" if reranking_wanted else "ann_order"
        self._requests.inc(tags={"outcome": "partial" if result.partial else outcome})
        for stage, milliseconds in result.milliseconds.items():
            self._seconds.observe(milliseconds / 1000, tags={"stage": stage})
        if result.out_of_distribution:
            self._strange.inc()

    def pinned(self, release: int, made: float, drift: float | None) -> None:
        """Note the release that is answered under, when it was made (seconds since 1970), and how its scores drift."""
        self._release.set(release)
        self._age.set(max(0.0, time.time() - made))
        if drift is not None:
            self._drift.set(drift)


class BatchMeter:
    """What a stage counts: how many requests meet in a batch."""

    def __init__(self) -> None:
        self._sizes = Histogram("mrcg_batch_size", "Requests that were worked on together.", SIZES)

    def worked(self, size: int) -> None:
        """Count a batch."""
        self._sizes.observe(size)


async def exposition() -> bytes:
    """What all nodes count, in Prometheus' text format. A node that does not answer is left out."""
    nodes = [node for node in await asyncio.to_thread(ray.nodes) if node["Alive"]]
    places = [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in nodes]
    async with httpx.AsyncClient(timeout=ASK_SECONDS) as http:
        pages = await asyncio.gather(*(http.get(place) for place in places), return_exceptions=True)
    return joined([page.text for page in pages if isinstance(page, httpx.Response) and page.is_success])


def joined(pages: Sequence[str]) -> bytes:
    """Ours of several pages in Prometheus' text format, each family once."""
    families: dict[str, Metric] = {}
    for page in pages:
        for family in text_string_to_metric_families(page):
            if family.name.startswith(OURS):
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
