"""Ingest segments in a child process, so that a decoder crash does not end the worker.

The child reads, decodes and writes a whole segment as fast as a plain loop and reports only how many files are done.
If it dies, or is silent for too long, the segment is ingested again with every file decoded in an ``IsolatedReader``,
which identifies the bad file. So isolation costs next to nothing unless a file breaks the decoder.
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
from mrcg.imaging.isolated_reader import IsolatedReader, make_decoder
from mrcg.imaging.slices import Reading
from mrcg.storage.filesystem import HashingFile
from mrcg.storage.store import Store

log = logging.getLogger(__name__)

#: Minimum seconds between two progress reports of the child.
REPORT_SECONDS = 0.25
#: Memory for writing, in addition to the limit for decoding.
_WRITING_BYTES = 2**29

ReportProgress = Callable[[int], None]


@dataclass(frozen=True)
class SegmentWork:
    """Where a segment's files are listed, and where its pixels are written.

    Attributes:
        store, source: URLs.
        listing: path of the listing in the store.
        pages: first page, and one past the last.
        output: folder in the store for the files of the corpus.
        prefix: of the names of the pixel files.
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
    """Ingests segments in a child process that is reused for the next segment.

    Args:
        memory_bytes: memory limit of the child for decoding.
    """

    def __init__(self, memory_bytes: int) -> None:
        self._memory = memory_bytes + _WRITING_BYTES
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._start()

    def __del__(self) -> None:
        self.close()

    def __call__(self, work: SegmentWork, report: ReportProgress) -> Segment:
        """Ingest the files of a segment.

        Args:
            work: the segment.
            report: called with the number of files done.

        Raises:
            MrcgError: an error that stops the whole job, raised by ``ingest_files``.
        """
        try:
            return self._in_child(work, report)
        except _ChildLostError:
            log.info("a file crashed or stalled the reader; reading this segment again file by file")
            self.close()
            settings = work.rules.settings
            with IsolatedReader(settings, settings.seconds_per_file, settings.reader_bytes) as reader:
                return ingest_segment(work, reader.read, report)

    def close(self) -> None:
        """End the child."""
        end_child(self._child, self._pipe)
        self._child = self._pipe = None

    def _start(self) -> Connection:
        self._child, self._pipe = start_child("mrcg.corpus.ingest_worker", self._memory)
        return self._pipe

    def _in_child(self, work: SegmentWork, report: ReportProgress) -> Segment:
        if self._child is not None and self._child.poll() is not None:
            self.close()
        pipe = self._pipe or self._start()
        try:
            pipe.send(work)
            while True:
                if not pipe.poll(work.rules.settings.seconds_per_file + REPORT_SECONDS):
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
    """The child died, or did not report in time."""


def ingest_segment(work: SegmentWork, decode: Callable[[bytes], Reading], report: ReportProgress) -> Segment:
    """Ingest the files of a segment in this process."""
    store, source = Store(work.store), open_source(work.source)

    def files() -> Iterator[SourceFile]:
        last_report = 0.0
        for number, file in enumerate(read_pages(store, work.listing, range(*work.pages), work.rules)):
            if time.monotonic() - last_report >= REPORT_SECONDS:
                last_report = time.monotonic()
                report(number)
            yield file

    def open_output(name: str) -> AbstractContextManager[HashingFile]:
        return store.writer(f"{work.output}/{name}")

    with ImagesWriter(open_output, work.prefix, work.rules.settings) as images:
        return ingest_files(files(), source.read, decode, work.rules, images, source.read_beside)


def serve(pipe: Connection) -> None:
    """Run the child: ingest the segments that arrive on the pipe until the parent closes it."""
    limit_process(pipe.recv())
    pipe.send("ready")
    while True:
        try:
            work: SegmentWork = pipe.recv()
        except EOFError:
            return
        settings = work.rules.settings
        try:
            answer: Segment | Exception = ingest_segment(work, make_decoder(settings), pipe.send)
        except MrcgError as error:
            answer = without_cause(error)
        pipe.send(answer)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
