"""Ray for a job: one of its own on this machine, or a given cluster."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError, RayTaskError
from ray.train import TrainingFailedError

from mrcg import errors
from mrcg.errors import MrcgError, SettingsError, UsageError
from mrcg.execution import ray_environment


def start(address: str | None) -> None:
    """Connect to a cluster, or start one on this machine that dies with this process.

    Args:
        address: of a Ray cluster; None starts a local one.

    Raises:
        UsageError: the cluster does not answer.
    """
    if ray.is_initialized():
        return
    try:
        ray.init(**ray_environment.init_options(address))
    except (ConnectionError, RayError, ValueError) as error:
        raise UsageError(f"--ray {address}: {' '.join(str(error).split())[:200]}") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def stop() -> None:
    """Disconnect; ends a cluster that ``start`` started."""
    if ray.is_initialized():
        ray.shutdown()


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
    """Let our own errors come out of Ray as they were raised in a worker."""
    try:
        yield
    except (RayTaskError, TrainingFailedError) as error:
        cause = _cause(error)
        if cause is None:
            raise
        raise cause from error


def carry(error: MrcgError) -> dict[str, Any]:
    """One of our errors as a row: what Ray Data wraps around an exception keeps nothing of it."""
    return {"error": type(error).__name__, "message": str(error)}


def revived(row: Mapping[str, Any]) -> MrcgError:
    """The error of such a row."""
    kind = getattr(errors, row["error"])
    assert issubclass(kind, MrcgError)
    error: MrcgError = kind(row["message"])
    return error


def each_row(dataset: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """The rows of a dataset as they come; an error that a worker carried is raised here."""
    for row in dataset.iter_rows():
        if row.get("error") is not None:
            raise revived(row)
        yield row


def _cause(error: BaseException | None) -> MrcgError | None:
    """The first of our errors in what Ray wrapped around it."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, MrcgError) and not isinstance(one, RayTaskError):
            return one
        waiting += [getattr(one, "cause", None), getattr(one, "controller_failure", None), one.__cause__]
        waiting += list(getattr(one, "worker_failures", {}).values())
    return None


def cpus_each(workers: int, wanted: float = 0.0) -> float:
    """CPUs for each of some workers: what is wanted, or an equal share of all that fits on one node.

    Raises:
        SettingsError: the cluster has too few; Ray would wait for more without a word.
    """
    nodes = [float(node["Resources"].get("CPU", 0.0)) for node in ray.nodes() if node["Alive"]]
    share = wanted or min(max(1.0, sum(nodes) // workers), max(nodes))
    if share * workers > sum(nodes) or share > max(nodes):
        raise SettingsError(
            f"{workers} workers with {share:g} CPUs each do not fit on a cluster of {sum(nodes):g} CPUs "
            f"({max(nodes):g} on its largest node): lower compute.*_workers, compute.embed_actors or cpus_per_trainer"
        )
    return share
