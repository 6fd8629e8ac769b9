"""Connect a job to a Ray cluster, or start a local one.

Every task imports this module. Ray Data and Ray Train take half a second, so they are imported where they are used.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError, RayTaskError

from mrcg.errors import MrcgError, SettingsError, UsageError, from_row
from mrcg.execution import ray_environment

if TYPE_CHECKING:
    from ray.data import Dataset


def start(address: str | None) -> None:
    """Connect to a cluster, or start one on this machine that stops with this process.

    Args:
        address: of a Ray cluster; None starts a local one.

    Raises:
        UsageError: the cluster does not answer.
    """
    if ray.is_initialized():
        return
    try:
        ray_environment.connect(ray, address)
    except (ConnectionError, RayError, ValueError) as error:
        raise UsageError(f"--ray {address}: {' '.join(str(error).split())[:200]}") from error
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def stop() -> None:
    """Disconnect from Ray; a cluster that ``start`` started is stopped."""
    if ray.is_initialized():
        ray.shutdown()


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
    """Re-raise a ``MrcgError`` of a worker without the exception that Ray wraps around it."""
    try:
        yield
    except Exception as error:
        from ray.train import TrainingFailedError

        if not isinstance(error, RayTaskError | TrainingFailedError):
            raise
        cause = _cause(error)
        if cause is None:
            raise
        raise cause from error


def each_row(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """The rows of a dataset as they come; an error that a worker carried is raised here."""
    for row in dataset.iter_rows():
        if row.get("error") is not None:
            raise from_row(row)
        yield row


def _cause(error: BaseException | None) -> MrcgError | None:
    """Return the first ``MrcgError`` in the chain of causes of an exception that Ray raised."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, MrcgError) and not isinstance(current, RayTaskError):
            return current
        waiting += [getattr(current, "cause", None), getattr(current, "controller_failure", None), current.__cause__]
        waiting += list(getattr(current, "worker_failures", {}).values())
    return None


def cpus_each(workers: int, requested: float = 0.0) -> float:
    """Return the CPUs of each worker.

    Args:
        workers: number of workers.
        requested: CPUs for each; 0 gives each an equal share of the cluster that fits on one node.

    Raises:
        SettingsError: the cluster has too few CPUs; Ray would wait for more silently.
    """
    nodes = [float(node["Resources"].get("CPU", 0.0)) for node in ray.nodes() if node["Alive"]]
    share = requested or min(max(1.0, sum(nodes) // workers), max(nodes))
    if share * workers > sum(nodes) or share > max(nodes):
        raise SettingsError(
            f"{workers} workers with {share:g} CPUs each do not fit on a cluster of {sum(nodes):g} CPUs "
            f"({max(nodes):g} on its largest node): lower compute.*_workers, compute.embed_actors or cpus_per_trainer"
        )
    return share
