"""Environment variables that must be set before Ray is imported. This module does not import Ray."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mrcg import proxies
from mrcg.errors import UsageError

LOCAL_OBJECT_STORE = 1 * 2**30
#: Characters of Ray's folder: with what Ray appends, the path of a socket has at most the 107 that Linux allows.
_LONGEST_FOLDER = 40
#: glibc allocator settings for a process that trains or embeds. Ray runs our code in a thread, and glibc returns memory
#: that a thread frees to the system at once. Without these settings every batch faults its activations in again page by
#: page, which takes a third of the time.
COMPUTE_ENV = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}


def prepare() -> None:
    """Set the variables that Ray reads when it is imported; variables that the user has set keep their value.

    Scans are private: joining a cluster requires its token (all nodes need the same auth mode), and Ray's usage
    statistics are switched off.
    """
    proxies.bypass_for_this_machine()
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's errors reach us as exceptions and its logs are in files, so the output of its C++ backend between our
    # lines is only noise. Ray announces this setting in one line that cannot be turned off.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Seconds between two polls of Ray Train for its workers' reports; the report of an epoch waits for the next poll.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # Ray Train can warn workers that their node will be taken away, by one more process for each training. Ours have
    # no use for the warning: they go on from the last checkpoint.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


def prepare_serving() -> None:
    """Call `prepare`, and also set the variables that make the many small calls between serving stages cheap."""
    prepare()
    # Our code in replicas only awaits, or computes in its own threads, so it can share Serve's event loop: that saves
    # three thread switches per call. Serve writes its log lines to log files, so they need not go to stderr as well.
    os.environ.setdefault("RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD", "0")
    os.environ.setdefault("RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP", "0")
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    # Replicas listen for gRPC in any case and require Ray's token from every caller. Calls by gRPC avoid the
    # bookkeeping of a remote object. The message limit must hold the vectors of a batch: 16 x 50 vectors of 1,000
    # dimensions or more.
    os.environ.setdefault("RAY_SERVE_USE_GRPC_BY_DEFAULT", "1")
    os.environ.setdefault("RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", str(64 * 2**20))
    # Serve's controller otherwise runs its loop ten times a second, a noticeable load on two cores.
    os.environ.setdefault("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "0.25")


def connect(ray: Any, address: str | None) -> None:
    """Call ``ray.init``: connect to a cluster, or start a local one that ends with this process.

    Ray puts the driver's working folder in front of the modules of all workers. There a user's random.py or pydicom.py
    would be imported instead of the library, so ``ray.init`` is called in another folder.

    Args:
        ray: the module, which this one does not import.
        address: of the cluster; None starts a local one.
    """
    with contextlib.chdir(sys.prefix), contextlib.ExitStack() as stack:
        if address is None:
            stack.enter_context(_without_usage_reporter(ray._private.services))
        ray.init(**init_options(address))


@contextlib.contextmanager
def _without_usage_reporter(services: Any) -> Iterator[None]:
    """Let a local Ray start without the process that reports usage.

    Without a dashboard it has no other work. Also where reports are off, it first asks the metadata services of three
    clouds where it runs, and no setting of Ray 2.60 prevents that. Ray takes this answer as "it did not start".
    """
    original = services.start_api_server
    services.start_api_server = lambda *_, **__: (None, None)
    try:
        yield
    finally:
        services.start_api_server = original


def init_options(address: str | None) -> dict[str, Any]:
    """Return the arguments of ``ray.init`` for a given cluster, or for a local one that ends with this process."""
    options: dict[str, Any] = {"address": address or "local", "log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": LOCAL_OBJECT_STORE, "_temp_dir": _ray_folder()}
        _ensure_token()
    return options


def _ray_folder() -> str:
    """Return a folder for the sockets and logs of a local Ray: the usual one, or another where that cannot be used.

    Raises:
        UsageError: there is none.
    """
    stated = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    own = f"ray-{os.getuid()}"
    for folder in (f"{stated}/ray", f"{stated}/{own}", "/tmp/ray", f"/tmp/{own}"):
        if len(folder) <= _LONGEST_FOLDER and _is_writable(folder):
            return folder
    raise UsageError(
        f"Ray cannot use {stated}/ray: it belongs to another user, or its path has more than {_LONGEST_FOLDER} "
        "characters; set TMPDIR to a short path of a folder of your own"
    )


def _is_writable(folder: str) -> bool:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _ensure_token() -> None:
    """Give a local cluster a token of its own where the home folder has no room for Ray's token file."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    folder = Path("~/.ray").expanduser()
    if not (folder / "auth_token").is_file() and not _is_writable(str(folder)):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
