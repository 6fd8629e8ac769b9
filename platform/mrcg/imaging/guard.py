"""Reads files in a process of its own: what a damaged file breaks there is that file's quarantine row.

Decoders in C can crash, hang or take all memory on files that were damaged or made to do so. The child
has a memory limit, the parent a clock; a child that dies or is late is replaced, and the file is refused.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from multiprocessing.connection import Connection, Pipe
from types import TracebackType

from mrcg.config import ReadSettings
from mrcg.errors import ImageError, MrcgError
from mrcg.imaging.slices import Reading

#: How long a new child may take to import what a format needs, on a busy machine.
START_SECONDS = 60.0


class Guard:
    """A reader in a child process. A context manager; not for use by two threads at once."""

    def __init__(self, settings: ReadSettings, seconds: float, memory_bytes: int) -> None:
        self._settings = settings
        self._seconds = seconds
        self._memory = memory_bytes
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self.restarts = 0

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def read(self, data: bytes) -> Reading:
        """The slices of a file, as ``readers.read``.

        Raises:
            ImageError: crashed, timeout, too_much_memory, or a reason of a reader.
        """
        pipe = self._pipe or self._start()
        try:
            pipe.send_bytes(data)
            if not pipe.poll(self._seconds):
                self.close()
                self.restarts += 1
                raise ImageError("timeout", f"not decoded in {self._seconds:g} s")
            answer = pipe.recv()
        except (EOFError, OSError) as error:
            self.close()
            self.restarts += 1
            raise ImageError("crashed", "the decoder crashed on it") from error
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Reading)
        return answer

    def close(self) -> None:
        """End the child; a later read starts another."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    def _start(self) -> Connection:
        ours, theirs = Pipe()
        # One thread a decoder: the machine's cores are shared out among readers already.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._child = subprocess.Popen(
            [sys.executable, "-m", "mrcg.imaging.guard", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            # Decoders write what they find in headers to stderr: names of people would get into logs.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
        ours.send((self._settings, self._memory))
        if not ours.poll(START_SECONDS):
            self._pipe = ours
            self.close()
            raise RuntimeError(f"the reading process did not start in {START_SECONDS:g} s")
        ours.recv()
        self._pipe = ours
        return ours


def serve(pipe: Connection) -> None:
    """The child: read what comes until the parent is gone."""
    settings, memory = pipe.recv()
    from mrcg.imaging.readers import read

    _limit(memory)
    pipe.send("ready")
    while True:
        try:
            data = pipe.recv_bytes()
        except EOFError:
            return
        answer: Reading | Exception
        try:
            answer = read(data, settings)
        except MrcgError as error:
            answer = error.with_traceback(None)
            answer.__cause__ = answer.__context__ = None
        except MemoryError:
            answer = ImageError("too_much_memory", f"decoding takes more than {memory:,} bytes")
        except RecursionError:
            answer = ImageError("unreadable", "nested too deeply")
        del data
        pipe.send(answer)


def _limit(memory: int) -> None:
    """Limit this process' memory and bind its life to the parent's, where the system can."""
    with contextlib.suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        import ctypes
        import signal

        die_with_parent = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(die_with_parent, signal.SIGKILL)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
