"""Read files in a child process, so that a damaged file costs only its own quarantine row.

Decoders written in C can crash, hang or use all memory on damaged or malicious files. The child has a memory limit and
the parent a timeout. A child that dies or takes too long is replaced, and the file is refused.

This protects against damaged files, not against an attacker who takes over the child: the parent unpickles its answers.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType

from mrcg.config.settings import ReadSettings
from mrcg.errors import ImageError, MrcgError
from mrcg.execution.sandbox import end_child, limit_process, start_child, without_cause
from mrcg.imaging.readers import read
from mrcg.imaging.slices import Reading


class IsolatedReader:
    """Reads files in a child process. Use it as a context manager; it is not thread-safe.

    Args:
        settings: of the readers.
        seconds: timeout for one file.
        memory_bytes: memory limit of the child.
    """

    def __init__(self, settings: ReadSettings, seconds: float, memory_bytes: int) -> None:
        self._settings = settings
        self._seconds = seconds
        self._memory = memory_bytes
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> IsolatedReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def read(self, data: bytes) -> Reading:
        """Return the slices of a file, like ``readers.read``.

        Raises:
            ImageError: crashed, timeout, too_much_memory, or a reason of a reader.
            MissingExtraError: the library for the format is not installed.
            RuntimeError: the child process did not start.
        """
        if self._child is not None and self._child.poll() is not None:
            self.close()  # the child ended between two files, so this file is not the cause
        pipe = self._pipe or self._start()
        try:
            pipe.send_bytes(data)
            if not pipe.poll(self._seconds):
                self.close()
                raise ImageError("timeout", f"decoding took longer than the limit of {self._seconds:g} s")
            answer = pipe.recv()
        except (EOFError, OSError) as error:
            self.close()
            raise ImageError("crashed", "the decoder process crashed on this file") from error
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Reading)
        return answer

    def close(self) -> None:
        """End the child process; a later read starts a new one."""
        end_child(self._child, self._pipe)
        self._child = self._pipe = None

    def _start(self) -> Connection:
        self._child, self._pipe = start_child("mrcg.imaging.isolated_reader", self._settings, self._memory)
        return self._pipe


def make_decoder(settings: ReadSettings) -> Callable[[bytes], Reading]:
    """Return ``readers.read`` for a process with a memory limit: a file that exceeds the limit is refused.

    The returned function raises ImageError with the reason too_much_memory, unreadable (nested too deeply), or a reason
    of a reader.
    """

    def decode(data: bytes) -> Reading:
        try:
            return read(data, settings)
        except MemoryError as error:
            raise ImageError("too_much_memory", "decoding needs more memory than ingest.reader_bytes allows") from error
        except RecursionError as error:
            raise ImageError("unreadable", "its structure is nested too deeply") from error

    return decode


def serve(pipe: Connection) -> None:
    """Run the child's loop: read each file that arrives on the pipe until the parent closes it."""
    decode = make_decoder(pipe.recv())
    limit_process(pipe.recv())
    pipe.send("ready")
    while True:
        try:
            data = pipe.recv_bytes()
        except EOFError:
            return
        answer: Reading | MrcgError
        try:
            answer = decode(data)
        except MrcgError as error:
            answer = without_cause(error)
        del data
        pipe.send(answer)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
