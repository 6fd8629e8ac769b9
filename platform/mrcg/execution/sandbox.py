"""Child processes with a memory limit, for work that a damaged file can crash."""

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

#: Seconds within which a new child must have imported its modules; generous, for a busy machine.
START_SECONDS = 60.0


def start_child(module: str, *setup: Any) -> tuple[subprocess.Popen[bytes], Connection]:
    """Start a child process that runs ``module`` as a script on one end of a pipe, and wait until it is ready.

    Args:
        module: run by ``python -P -m`` with the file descriptor of its end of the pipe as argument.
        setup: objects that are sent to the child first; it answers with one message when it is ready.

    Returns:
        The child and the parent's end of the pipe.

    Raises:
        RuntimeError: the child ended or was not ready within ``START_SECONDS``.
    """
    parent_end, child_end = Pipe()
    # One thread per decoder: the readers already share out the cores of the machine.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    child = subprocess.Popen(
        # -P: a module of the working folder, such as a user's random.py, is not imported.
        [sys.executable, "-P", "-m", module, str(child_end.fileno())],
        pass_fds=[child_end.fileno()],
        env=environment,
        stdin=subprocess.DEVNULL,
        # Decoders write header contents to stderr, which would put patient names into logs.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    child_end.close()
    try:
        for message in setup:
            parent_end.send(message)
        if not parent_end.poll(START_SECONDS):
            raise TimeoutError(f"not ready after {START_SECONDS:g} s")
        parent_end.recv()
    except (EOFError, OSError) as error:
        end_child(child, parent_end)
        problem = str(error) or "it exited before it was ready"
        raise RuntimeError(f"the file reader process ({module}) did not start: {problem}") from error
    return child, parent_end


def end_child(child: subprocess.Popen[bytes] | None, pipe: Connection | None) -> None:
    """Kill a child process, wait for its end and close its pipe; None is ignored."""
    if pipe is not None:
        pipe.close()
    if child is not None:
        child.kill()
        child.wait()


def without_cause(error: MrcgError) -> MrcgError:
    """Strip cause, context and traceback from an error: they can quote a header, and do not always pickle."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def limit_process(memory: int) -> None:
    """Limit the memory of this process (where the system can), and end the process when its parent is gone.

    Args:
        memory: bytes of data segment (``RLIMIT_DATA``); core dumps are switched off.
    """
    with contextlib.suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Between files a closed pipe shows that the parent is gone; this thread covers a decoder that hangs. Not
    # PR_SET_PDEATHSIG: it fires when the thread that started the child ends, and threads of a pool come and go.
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()


def _exit_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
