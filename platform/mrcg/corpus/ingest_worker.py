"""One segment of an ingestion, done in a process that may crash without harm.

The child reads, decodes and writes all by itself, as fast as a plain loop; it only says which file it begins. If it
dies or a file takes too long, the segment is done again file by file through an ``IsolatedReader``, which finds out
which file it was. So safety costs nothing where nothing is wrong.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection

from mrcg.corpus.ingestion import ImagesWriter, Rules, Segment, ingest_files
from mrcg.corpus.listing import read_pages
from mrcg.corpus.sources import SourceFile, open_source
from mrcg.errors import MrcgError
from mrcg.execution.sandbox import end_child, limit_process, start_child, without_cause
from mrcg.imaging.isolated_reader import IsolatedReader, decoding
from mrcg.imaging.slices import Reading
from mrcg.storage.filesystem import HashingFile
from mrcg.storage.store import Store

log = logging.getLogger(__name__)

#: Seconds between two signs of life, as long as files come and go.
EVERY = 0.25
#: What writing needs beside decoding.
_WRITING_BYTES = 2**29

Report = Callable[[int], None]


@dataclass(frozen=True)
class SegmentWork:
    """Where a segment's files are listed, and where its pixels go.

    Attributes:
        store, source: URLs.
        listing: path of the listing in the store.
        pages: first and one past the last page.
        output: folder in the store for the corpus' files.
        prefix: of the names of the files of pixels.
        rules: of the ingestion.
    """

    store: str
    source: str
    listing: str
    pages: tuple[int, int]
    output: str
    prefix: str
    rules: Rules


class SegmentReader:
    """Does segments in a child process that it keeps from one to the next.

    Args:
        memory_bytes: that a child may take for decoding.
    """

    def __init__(self, memory_bytes: int) -> None:
        self._memory = memory_bytes + _WRITING_BYTES
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._start()

    def __del__(self) -> None:
        self.close()

    def __call__(self, work: SegmentWork, report: Report) -> Segment:
        """Ingest the files of a segment.

        Args:
            work: the segment.
            report: told how many files are done.

        Raises:
            MrcgError: what stops the whole job, as ``ingest_files`` raises it.
        """
        try:
            return self._in_child(work, report)
        except _ChildLostError:
            log.info("a file broke its reader: reading this segment file by file")
            self.close()
            settings = work.rules.settings
            with IsolatedReader(settings, settings.seconds_per_file, settings.reader_bytes) as guard:
                return do_segment(work, guard.read, report)

    def close(self) -> None:
        """End the child."""
        end_child(self._child, self._pipe)
        self._child = self._pipe = None

    def _start(self) -> Connection:
        self._child, self._pipe = start_child("mrcg.corpus.ingest_worker", self._memory)
        return self._pipe

    def _in_child(self, work: SegmentWork, report: Report) -> Segment:
        if self._child is not None and self._child.poll() is not None:
            self.close()
        pipe = self._pipe or self._start()
        try:
            pipe.send(work)
            while True:
                if not pipe.poll(work.rules.settings.seconds_per_file + EVERY):
                    raise _ChildLostError
                answer = pipe.recv()
                if isinstance(answer, Segment):
                    return answer
                if isinstance(answer, Exception):
                    raise answer
                report(answer)
        except (EOFError, OSError) as error:
            raise _ChildLostError from error


class _ChildLostError(Exception):
    """The child died or is late."""


def do_segment(work: SegmentWork, decode: Callable[[bytes], Reading], report: Report) -> Segment:
    """Ingest the files of a segment in this process."""
    store, source = Store(work.store), open_source(work.source)

    def reported() -> Iterator[SourceFile]:
        last = 0.0
        for number, file in enumerate(read_pages(store, work.listing, range(*work.pages), work.rules)):
            if time.monotonic() - last >= EVERY:
                last = time.monotonic()
                report(number)
            yield file

    def opened(name: str) -> AbstractContextManager[HashingFile]:
        return store.writer(f"{work.output}/{name}")

    with ImagesWriter(opened, work.prefix, work.rules.settings) as images:
        return ingest_files(reported(), source.read, decode, work.rules, images)


def serve(pipe: Connection) -> None:
    """The child: do the segments that come until the parent is gone."""
    limit_process(pipe.recv())
    pipe.send("ready")
    while True:
        try:
            work: SegmentWork = pipe.recv()
        except EOFError:
            return
        settings = work.rules.settings
        try:
            answer: Segment | Exception = do_segment(work, decoding(settings), pipe.send)
        except MrcgError as error:
            answer = without_cause(error)
        pipe.send(answer)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
