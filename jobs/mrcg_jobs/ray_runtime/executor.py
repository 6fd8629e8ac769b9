"""Executor on a Ray cluster: one Ray task per item."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray

from mrcg.errors import SettingsError
from mrcg.execution.executor import release_memory
from mrcg_jobs.ray_runtime.cluster import cpus_each, own_errors

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Tasks in flight per task that can run at a time: some wait, so that no core is idle.
IN_FLIGHT_PER_SLOT = 2


@ray.remote
def _run_item(work: Callable[[Any], Any], item: Any, threads: int) -> Any:
    # Libraries read this when they first compute; a reused worker keeps its environment.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    result = work(item)
    release_memory()
    return result


def _check_memory(bytes_each: int) -> None:
    largest = max(float(node["Resources"].get("memory", 0.0)) for node in ray.nodes() if node["Alive"])
    if bytes_each > largest:
        raise SettingsError(
            f"one task needs {bytes_each / 2**30:.1f} GiB, but the largest node has {largest / 2**30:.1f} GiB: "
            "raise index.shards or lower index.part_bytes"
        )


class RayExecutor:
    """Runs items as Ray tasks; each gets an equal share of the cores and waits until its memory is free."""

    def map(
        self, work: Callable[[Item], Result], items: Sequence[Item], bytes_each: int = 0, gpus_each: int = 0
    ) -> Iterator[Result]:
        """Yield the results in the order of the items; the first ``MrcgError`` of a task is raised unchanged.

        Raises:
            SettingsError: one item needs more memory than the largest node has.
        """
        if not items:
            return
        _check_memory(bytes_each)
        share = max(1, int(cpus_each(min(len(items), max(1, int(ray.cluster_resources().get("CPU", 1)))))))
        task = _run_item.options(num_cpus=share, num_gpus=gpus_each, memory=bytes_each or None)
        # Stored once instead of sent with every task: it may hold data that all tasks need.
        shared, waiting, todo = ray.put(work), [], iter(items)
        limit = IN_FLIGHT_PER_SLOT * max(1, int(ray.cluster_resources().get("CPU", 1) // share))
        with own_errors():
            for item in todo:
                waiting.append(task.remote(shared, item, share))
                if len(waiting) >= limit:
                    yield ray.get(waiting.pop(0))
            while waiting:
                yield ray.get(waiting.pop(0))


def on_every_node(work: Callable[[Item], Result], item: Item) -> list[Result]:
    """Run ``work(item)`` once on each node that is alive now and return the results."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    pin = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    shared = ray.put(work)
    with own_errors():
        results: list[Result] = ray.get(
            [
                _run_item.options(num_cpus=0, scheduling_strategy=pin(node, soft=False)).remote(shared, item, 1)
                for node in nodes
            ]
        )
        return results
