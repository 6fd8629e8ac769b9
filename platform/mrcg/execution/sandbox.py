"""Child processes with a memory limit, for work that a damaged file may crash."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection, Pipe
from typing import Any

from mrcg.errors import MrcgError

#: How long a new child may take to import what it needs, on a busy machine.
START_SECONDS = 60.0


def start_child(module: str, *first: Any) -> tuple[subprocess.Popen[bytes], Connection]:
    """A child that runs a module's ``serve`` on a pipe; what it is sent first, and waited for to be ready."""
    ours, theirs = Pipe()
    # One thread a decoder: the machine's cores are shared out among readers already.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-m", module, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        env=environment,
        stdin=subprocess.DEVNULL,
        # Decoders write what they find in headers to stderr: names of people would get into logs.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    theirs.close()
    try:
        for one in first:
            ours.send(one)
        if not ours.poll(START_SECONDS):
            raise TimeoutError(f"it took longer than {START_SECONDS:g} s")
        ours.recv()
    except (EOFError, OSError) as error:
        end_child(child, ours)
        raise RuntimeError(f"the process that reads files did not start: {error}") from error
    return child, ours


def end_child(child: subprocess.Popen[bytes] | None, pipe: Connection | None) -> None:
    """Kill a child and close its pipe."""
    if pipe is not None:
        pipe.close()
    if child is not None:
        child.kill()
        child.wait()


def without_cause(error: MrcgError) -> MrcgError:
    """An error without what led to it: that may quote a header, and cannot always cross a pipe."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def limit_process(memory: int) -> None:
    """Limit this process' memory and bind its life to the parent's, where the system can."""
    with contextlib.suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Between files the pipe tells that the parent is gone; this is for a decoder that hangs. Not PR_SET_PDEATHSIG:
    # that follows the thread which started the child, and threads of a pool come and go.
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
