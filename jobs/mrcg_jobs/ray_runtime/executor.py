"""Executor on a Ray cluster: a task for each piece of work."""

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

#: Pieces in flight for each core: a few wait, so that no core does.
AHEAD = 2


@ray.remote
def _piece(work: Callable[[Any], Any], item: Any, threads: int) -> Any:
    # Read when a library begins to compute; a worker that is used again keeps its environment.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    result = work(item)
    release_memory()
    return result


def _check_memory(bytes_each: int) -> None:
    largest = max(float(node["Resources"].get("memory", 0.0)) for node in ray.nodes() if node["Alive"])
    if bytes_each > largest:
        raise SettingsError(
            f"a piece of this work needs {bytes_each / 2**30:.1f} GiB and the largest node has {largest / 2**30:.1f}: "
            "raise index.shards or lower index.part_bytes"
        )


class RayExecutor:
    """Does pieces as Ray tasks; each gets an equal share of the cores, and waits until its memory is free."""

    def map(
        self, work: Callable[[Item], Result], items: Sequence[Item], bytes_each: int = 0, gpus_each: int = 0
    ) -> Iterator[Result]:
        """The results in order; of our errors the first is raised as it was."""
        if not items:
            return
        _check_memory(bytes_each)
        share = max(1, int(cpus_each(min(len(items), max(1, int(ray.cluster_resources().get("CPU", 1)))))))
        task = _piece.options(num_cpus=share, num_gpus=gpus_each, memory=bytes_each or None)
        # Once, not with every piece: it may carry what all of them need.
        shared, waiting, todo = ray.put(work), [], iter(items)
        most = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1) // share))
        with own_errors():
            for item in todo:
                waiting.append(task.remote(shared, item, share))
                if len(waiting) >= most:
                    yield ray.get(waiting.pop(0))
            while waiting:
                yield ray.get(waiting.pop(0))


def on_every_node(work: Callable[[Item], Result], item: Item) -> list[Result]:
    """Do one thing on each node that lives now."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    pin = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    shared = ray.put(work)
    with own_errors():
        results: list[Result] = ray.get(
            [
                _piece.options(num_cpus=0, scheduling_strategy=pin(node, soft=False)).remote(shared, item, 1)
                for node in nodes
            ]
        )
        return results
