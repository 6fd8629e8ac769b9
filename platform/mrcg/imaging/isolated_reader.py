"""Reads files in a process of its own: what a damaged file breaks there is that file's quarantine row.

Decoders in C can crash, hang or take all memory on files that were damaged or made to do so. The child
has a memory limit, the parent a clock; a child that dies or is late is replaced, and the file is refused.

This holds against damage, not against an attacker who takes the child over: what comes back is unpickled.
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
    """A reader in a child process. A context manager; not for use by two threads at once."""

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
        """The slices of a file, as ``readers.read``.

        Raises:
            ImageError: crashed, timeout, too_much_memory, or a reason of a reader.
        """
        if self._child is not None and self._child.poll() is not None:
            self.close()  # something else ended it: no fault of this file
        pipe = self._pipe or self._start()
        try:
            pipe.send_bytes(data)
            if not pipe.poll(self._seconds):
                self.close()
                raise ImageError("timeout", f"not decoded in {self._seconds:g} s")
            answer = pipe.recv()
        except (EOFError, OSError) as error:
            self.close()
            raise ImageError("crashed", "the decoder crashed on it") from error
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Reading)
        return answer

    def close(self) -> None:
        """End the child; a later read starts another."""
        end_child(self._child, self._pipe)
        self._child = self._pipe = None

    def _start(self) -> Connection:
        self._child, self._pipe = start_child("mrcg.imaging.isolated_reader", self._settings, self._memory)
        return self._pipe


def decoding(settings: ReadSettings) -> Callable[[bytes], Reading]:
    """``readers.read`` for a process with a memory limit: reaching it refuses the file."""

    def decode(data: bytes) -> Reading:
        try:
            return read(data, settings)
        except MemoryError as error:
            raise ImageError("too_much_memory", "decoding takes more memory than ingest.reader_bytes") from error
        except RecursionError as error:
            raise ImageError("unreadable", "nested too deeply") from error

    return decode


def serve(pipe: Connection) -> None:
    """The child: read what comes until the parent is gone."""
    decode = decoding(pipe.recv())
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
