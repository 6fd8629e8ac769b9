"""Map the pixel files of a corpus over Ray actors that hold a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray.data

from mrcg.config.settings import ComputeSettings
from mrcg_jobs.ray_runtime.cluster import cpus_each, each_row, own_errors


def each_file(
    names: Sequence[str], actor: type, work_for: Callable[[int], Any], compute: ComputeSettings
) -> Iterator[dict[str, Any]]:
    """Yield what the actors return for each file, in any order.

    Args:
        names: of the pixel files.
        actor: class whose instances take a row with ``file`` and return a row; an error goes into the row.
        work_for: returns the argument of its constructor for a number of compute threads.
        compute: settings of the number of actors, and whether each has a GPU.
    """
    share = cpus_each(compute.embed_actors)
    files = [{"file": name} for name in names]
    dataset = ray.data.from_items(files, override_num_blocks=len(files)).map(
        actor,
        fn_constructor_args=(work_for(int(share)),),
        compute=ray.data.ActorPoolStrategy(size=compute.embed_actors),
        num_cpus=share,
        num_gpus=1 if compute.use_gpu else None,
    )
    with own_errors():
        yield from each_row(dataset)
