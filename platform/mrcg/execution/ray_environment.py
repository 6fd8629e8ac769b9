"""What Ray reads from the environment, set before it is imported. This module does not import it."""

from __future__ import annotations

import logging
import os
from typing import Any

LOCAL_OBJECT_STORE = 1 * 2**30
#: glibc's allocator for a process that trains or embeds. Ray runs our code in a thread, and what a thread frees glibc
#: gives back to the system at once: every batch then faults its activations in again, page by page, a third of the
#: time.
COMPUTE_ENV = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}


def prepare() -> None:
    """Set what Ray reads at its import, where the user has not.

    Scans are private: nobody joins a cluster without its token (all nodes need the same mode), and
    nothing is reported home.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's errors come as exceptions and its logs are in files: what its C++ side writes between our
    # lines helps nobody. It announces this setting once, in a line that cannot be turned off.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Train asks its workers this often (seconds) for reports, and an epoch's report waits for it.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")


def prepare_serving() -> None:
    """The same for a service: calls between its stages are many and small."""
    prepare()
    # Our code in replicas waits, or computes in threads of its own, so it may share the event loop of Serve's: that
    # saves three changes of thread for each call. Serve's lines go to its log files, not to its workers' output, too.
    os.environ.setdefault("RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD", "0")
    os.environ.setdefault("RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP", "0")
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    # Replicas listen for gRPC in any case, and Ray's token is asked of whoever calls. To use it spares each call the
    # bookkeeping of a remote object. The vectors of a batch go with it: 16 times 50 of 1,000 dimensions, and more.
    os.environ.setdefault("RAY_SERVE_USE_GRPC_BY_DEFAULT", "1")
    os.environ.setdefault("RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", str(64 * 2**20))
    # The controller looks ten times a second otherwise, which two cores feel.
    os.environ.setdefault("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "0.25")


def init_options(address: str | None) -> dict[str, Any]:
    """Arguments of ``ray.init`` for a given cluster, or for one on this machine that dies with this process."""
    options: dict[str, Any] = {"address": address or "local", "log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": LOCAL_OBJECT_STORE}
    return options
